"""The states of a session, by the names that a user is told, and which may follow which.

`restored` may fall back to `complete`: a restore that fails before the commit can be tried again from the same images.
After `committed` there is no way back: the source's copy is dead, and the images are kept until the process runs.

In post-copy the source's copy is not dead then but stopped for good, for it has memory that the destination lacks:
the process runs there as `following`, and is `running` once it needs the source no more. If it dies there before that,
it is `lost` there, and whole, though as it was at the commit, at the source.
"""

from enum import StrEnum

from imgwire.errors import LocalProtocolError


class SessionState(StrEnum):
    """Where a session is."""

    RECEIVING = "receiving"  #: images are coming in
    COMPLETE = "complete"  #: every byte is held and checked; a restore may read them
    RESTORED = "restored"  #: everything is restored, no instruction has run; waiting for the commit
    COMMITTED = "committed"  #: the source's copy is dead; the process belongs to the destination
    FOLLOWING = "following"  #: it runs at the destination; part of its memory is at the source still
    RUNNING = "running"  #: the process runs at the destination, and needs nothing of the source
    LOST = "lost"  #: it died at the destination before its memory was there; the source's copy is stopped and whole
    ABORTED = "aborted"  #: the process runs on at the source; the images are gone


_NEXT = {
    SessionState.RECEIVING: {SessionState.COMPLETE, SessionState.ABORTED},
    SessionState.COMPLETE: {SessionState.RESTORED, SessionState.COMMITTED, SessionState.ABORTED},
    SessionState.RESTORED: {SessionState.COMMITTED, SessionState.COMPLETE, SessionState.ABORTED},
    SessionState.COMMITTED: {SessionState.FOLLOWING, SessionState.RUNNING, SessionState.LOST},
    SessionState.FOLLOWING: {SessionState.RUNNING, SessionState.LOST},
    SessionState.RUNNING: set[SessionState](),
    SessionState.LOST: set[SessionState](),
    SessionState.ABORTED: set[SessionState](),
}

#: The source has given the word: only the destination's copy may run.
AFTER_COMMIT = frozenset({SessionState.COMMITTED, SessionState.FOLLOWING, SessionState.RUNNING, SessionState.LOST})
#: The process runs at the destination.
RUNS_THERE = frozenset({SessionState.FOLLOWING, SessionState.RUNNING})


def advance(now: SessionState, then: SessionState) -> SessionState:
    """Return `then` if it may follow `now`, else raise LocalProtocolError."""
    if then not in _NEXT[now]:
        raise LocalProtocolError(f"a session that is {now} cannot become {then}")
    return then


def is_final(state: SessionState) -> bool:
    """Whether nothing can follow."""
    return not _NEXT[state]
