"""What CRIU images mean: their codec, the memory view over a dump, and the transforms that rewrite them."""
