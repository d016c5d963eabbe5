"""`imgproxy recover` after a crash in the middle of post-copy: the tree is stopped here, and whole.

Where it runs is for the cache to say. It never runs on here because of a guess: only if the cache gives the session up,
before it was committed there, or if a person says so, after it was lost there.
"""

from collections.abc import Awaitable, Callable

import trio

from imgnode import proc
from imgnode.greeting import SessionRefused
from imgnode.journal import Journal
from imgnode.proc import ProcessId
from imgproxy.hook import KILL_TIMEOUT
from imgwire.errors import UsageError
from imgwire.messages import Resolve
from imgwire.states import SessionState

#: Seconds between two questions whether the memory is in its place.
PAUSE = 0.5

Ask = Callable[[Resolve], Awaitable[str]]

_TOLD = {
    SessionState.LOST: "the process died at the destination before its memory was there; it is whole here, and "
    "stopped. `imgproxy recover --run-here` lets it run on here, as it was when it was given up",
    SessionState.FOLLOWING: "the process runs at the destination, and waits there for memory that is still here, in "
    "stopped processes: `imgproxy recover` sends it on. `imgcache drop --force` ends it there; then `imgproxy recover "
    "--run-here` lets it run on here",
}
_FILLING = (
    "the process runs at the destination, which puts its memory in its place; until then it is whole here, too, and "
    "stopped: try again"
)
#: It was committed, and has not all its memory there.
UNDER_WAY = (SessionState.COMMITTED, SessionState.FOLLOWING)


def stopped_tree(journal: Journal) -> list[ProcessId]:
    """The tasks of the tree, as the journal has them, that exist still."""
    return [task for task in (ProcessId(*fields) for fields in journal.fact("tree") or ()) if proc.is_alive(task)]


async def state_there(journal: Journal, ask: Ask) -> SessionState:
    """Where the session is at the cache, which gives it up if it was not committed there. CannotConnect."""
    try:
        return SessionState(await ask(Resolve(journal.session, False, "interrupted before the hand-over")))
    except SessionRefused:
        return SessionState(await ask(Resolve(journal.session, True)))


async def settled_there(journal: Journal, ask: Ask, patience: float) -> SessionState:
    """The same. Where the cache has all memory it needs nobody, only time, to put that in its place: then it is asked
    again for `patience` seconds."""
    give_up_at = trio.current_time() + patience
    while True:
        state = await state_there(journal, ask)
        if state not in UNDER_WAY or not journal.fact("kept") or trio.current_time() > give_up_at:
            return state
        await trio.sleep(PAUSE)


def conclude(journal: Journal, state: SessionState, *, run_here: bool) -> tuple[bool, str]:
    """Do what follows from the state at the cache: whether it is settled, and what to tell. Blocking."""
    tree = stopped_tree(journal)
    if state is SessionState.ABORTED or (run_here and state is SessionState.LOST):
        journal.write("aborted", reason="taken back" if run_here else "recovered by the source")
        proc.continue_tree(tree)
        journal.remove()
        return True, "the process runs on here" if tree else "the process is gone, here and there"
    if state is SessionState.RUNNING:
        proc.kill_tree(tree)
        proc.wait_doomed(tree, KILL_TIMEOUT)
        journal.remove()
        return True, "the process runs at the destination, with all its memory"
    if run_here:
        raise UsageError(f"the session is {state} at the cache: the process would run twice; {_TOLD.get(state, '')}")
    if not tree:
        return False, f"the processes here are gone, and the session is {state} at the cache"
    if state is SessionState.FOLLOWING and journal.fact("kept"):
        return False, _FILLING
    return False, _TOLD.get(state, f"the process is stopped here, and its session is {state} at the cache: try again")
