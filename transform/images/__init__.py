"""Codec of CRIU images: containers, entries and the raw payloads between them, kept byte for byte."""
