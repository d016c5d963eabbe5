"""Our descriptions of CRIU's image entries and the classes generated from them (`python -m transform.images.generate`)."""
