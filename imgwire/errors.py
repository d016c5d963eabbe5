"""Who did wrong: the three errors that every part of the project raises on purpose.

`RemoteProtocolError` blames the peer, `LocalProtocolError` our own code, `UsageError` the person (or the
program) who asked for something that cannot be done. What broke underneath stays the `OSError` that the
kernel gave, with its path.
"""


class RemoteProtocolError(Exception):
    """The peer sent something that the protocol does not allow. The connection can only be closed."""


class LocalProtocolError(Exception):
    """Our own code tried to send something that the protocol does not allow: a bug on this side."""


class UsageError(Exception):
    """We were asked wrongly. The message is one line for a person: what is wrong, where, what to do."""
