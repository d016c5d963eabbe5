"""The program on the source node: takes images from CRIU, transforms them, sends them to the cache."""
