"""Drop-in replacement of the `criu-image-streamer` command, on our proxy and cache."""
