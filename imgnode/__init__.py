"""What both programs share on a node: sockets, splice, the link's I/O, processes, the journal, logs, metrics."""
