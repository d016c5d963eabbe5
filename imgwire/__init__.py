"""Protocols as pure state machines: bytes in, events out; events in, bytes out. No sockets, no files."""
