"""The states of a session, by the names that a user is told, and which may follow which.

`restored` may fall back to `complete`: a restore that fails before the commit can be tried again from the same images.
After `committed` there is no way back: the source's copy is dead, and the images are kept until the process runs.
"""

from enum import StrEnum

from imgwire.errors import LocalProtocolError


class SessionState(StrEnum):
    """Where a session is."""

    RECEIVING = "receiving"  #: images are coming in
    COMPLETE = "complete"  #: every byte is held and checked; a restore may read them
    RESTORED = "restored"  #: everything is restored, no instruction has run; waiting for the commit
    COMMITTED = "committed"  #: the source's copy is dead; the process belongs to the destination
    RUNNING = "running"  #: the process runs at the destination
    ABORTED = "aborted"  #: the process runs on at the source; the images are gone


_NEXT = {
    SessionState.RECEIVING: {SessionState.COMPLETE, SessionState.ABORTED},
    SessionState.COMPLETE: {SessionState.RESTORED, SessionState.COMMITTED, SessionState.ABORTED},
    SessionState.RESTORED: {SessionState.COMMITTED, SessionState.COMPLETE, SessionState.ABORTED},
    SessionState.COMMITTED: {SessionState.RUNNING},
    SessionState.RUNNING: set[SessionState](),
    SessionState.ABORTED: set[SessionState](),
}


def advance(now: SessionState, then: SessionState) -> SessionState:
    """Return `then` if it may follow `now`, else raise LocalProtocolError."""
    if then not in _NEXT[now]:
        raise LocalProtocolError(f"a session that is {now} cannot become {then}")
    return then


def is_final(state: SessionState) -> bool:
    """Whether nothing can follow."""
    return not _NEXT[state]
