"""One `criu restore`, whatever it speaks: from its first request until it is known what has become of it.

Only CRIU's action scripts and its death tell that. It is watched until the process runs or CRIU has ended; what it
leaves behind is cleared away, and another one may try.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from imgcache.leftovers import Leftovers
from imgcache.registry import Registry
from imgcache.session import Attempt, Session
from imgnode.criu import cause
from imgnode.nursery import flat_nursery
from imgnode.process import watch
from imgwire.errors import RemoteProtocolError
from imgwire.states import RUNS_THERE, SessionState

_log = structlog.get_logger()


async def claim(
    registry: Registry, criu: int, name: str | None, fits: Callable[[Session], bool] = lambda _session: True
) -> Session | None:
    """Wait for a session of that name (None: any) that fits, and take it for that CRIU; None if CRIU dies first."""
    claimed: Session | None = None
    async with flat_nursery() as nursery:

        async def died() -> None:
            await watch(criu)
            nursery.cancel_scope.cancel()

        if criu:
            nursery.start_soon(died)
        claimed = await registry.claim(name, fits)
        nursery.cancel_scope.cancel()
    return claimed


async def attend(
    session: Session,
    *,
    criu: int,
    hooked: bool,
    serve: Callable[[Leftovers], Awaitable[None]],
    let_go: Callable[[], None],
) -> None:
    """See one `criu restore` (pid `criu`, 0 if unknown) to its end.

    `serve` gives it its images; it is cancelled when there is no use in it. `let_go` closes what CRIU may wait for.
    """
    leftovers = await Leftovers.watch(criu)
    session.begin(Attempt(criu, hooked))
    try:
        async with _while_worthwhile(session, criu, leftovers):
            await serve(leftovers)
            let_go()
            if criu:
                await session.changes.wait_until(lambda: session.state in RUNS_THERE)
    except* (RemoteProtocolError, OSError) as errors:  # what one CRIU did wrong is no other session's business
        for error in errors.exceptions:
            _log.warning("criu restore is not served any further", session=session.name, error=str(error))
    finally:
        let_go()
        with trio.CancelScope(shield=True):
            await _conclude(session, criu, leftovers)


@asynccontextmanager
async def _while_worthwhile(session: Session, criu: int, leftovers: Leftovers) -> AsyncIterator[None]:
    """Leave the block when the session is aborted or CRIU is dead.

    Closed pipes and sockets are all that CRIU understands; and the tasks that a killed CRIU leaves behind keep its
    end of the socket open, so its death shows only on its pidfd.
    """
    async with flat_nursery() as nursery:

        async def aborted() -> None:
            await session.changes.wait_until(lambda: session.state is SessionState.ABORTED)
            nursery.cancel_scope.cancel()

        async def dead() -> None:
            await watch(criu)
            await leftovers.note_trees(session.attempt.init if session.attempt else 0)
            nursery.cancel_scope.cancel()

        nursery.start_soon(aborted)
        if criu:
            nursery.start_soon(dead)
        yield
        nursery.cancel_scope.cancel()


async def _conclude(session: Session, criu: int, leftovers: Leftovers) -> None:
    """CRIU has ended or the session has: find out what runs, clear away what does not."""
    if criu and not _is_running(session):
        with trio.move_on_after(leftovers.PATIENCE):
            await watch(criu)
    attempt = session.attempt
    if await _runs(session, leftovers):
        session.running()
        session.attempt = None
        return
    await leftovers.clear(attempt.init if attempt else 0)
    session.restore_failed(_reason(session.directory / "restore.log", criu))


async def _runs(session: Session, leftovers: Leftovers) -> bool:
    """Whether the process runs here. Its own word may come while we look, and then counts; images stay until then."""
    if _is_running(session) or session.state is not SessionState.COMMITTED or session.attempt is None:
        return _is_running(session)
    with session.reading():
        seen = await leftovers.runs(session, session.attempt.init)
    return seen or _is_running(session)


def _is_running(session: Session) -> bool:
    return session.state in RUNS_THERE


def _reason(log: Path, criu: int) -> str:
    try:
        error = cause(log.read_text(errors="replace"))
    except OSError:  # no log of ours: a person has started this CRIU
        error = None
    return error or f"criu restore (pid {criu}) ended before the process ran; its log has the reason"
