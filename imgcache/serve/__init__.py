"""The ways in which a session's images leave the cache: to `criu restore --stream`, to a directory."""
