"""The program on the destination node: stores the images of many sessions and serves them to CRIU."""
