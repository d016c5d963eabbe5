"""The ways in which images come into the proxy: from `criu dump --stream`, from a directory."""
