"""`criu restore --stream` on its socket: images are fed from the store as CRIU asks for them.

The socket listens long before there is anything to serve, so the restore can be started first: CRIU waits for our
answer without a time limit. It gets one only when the whole set is here. From then on the attempt is watched until
CRIU ends: only CRIU's action scripts and its death tell what has become of it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from imgcache.image import StoredImage
from imgcache.leftovers import Leftovers
from imgcache.serve.feed import Feed
from imgcache.session import Attempt, Session
from imgnode.criu import cause
from imgnode.nursery import flat_nursery
from imgnode.process import watch
from imgwire.errors import RemoteProtocolError
from imgwire.names import image_kind, is_pages
from imgwire.states import SessionState

_log = structlog.get_logger()


async def serve_restore(
    sock: trio.socket.SocketType, session: Session, *, criu: int, hooked: bool, release_as_read: bool = False
) -> None:
    """Serve one `criu restore` (pid `criu`, 0 if unknown) and see how it ends."""
    leftovers = await Leftovers.watch(criu)
    session.begin(Attempt(criu, hooked))
    try:
        async with _while_worthwhile(session, criu, leftovers):
            await _serve_images(sock, session, leftovers, release_as_read)
            sock.close()
            if criu:
                await session.changes.wait_until(lambda: session.state is SessionState.RUNNING)
    except* (RemoteProtocolError, OSError) as errors:  # what one CRIU did wrong is no other session's business
        for error in errors.exceptions:
            _log.warning("criu restore is not served any further", session=session.name, error=str(error))
    finally:
        sock.close()
        with trio.CancelScope(shield=True):
            await _conclude(session, criu, leftovers)


async def _serve_images(
    sock: trio.socket.SocketType, session: Session, leftovers: Leftovers, release_as_read: bool
) -> None:
    def fed(image: StoredImage) -> None:
        session.metrics.image_bytes.labels("out", image_kind(image.name)).inc(image.size)
        if is_pages(image.name):
            leftovers.note_children()

    with session.reading():
        await Feed(
            sock,
            session.store,
            release_as_read=release_as_read,
            until_servable=lambda: _until_servable(sock, session),
            fed=fed,
        ).run()


async def _until_servable(sock: trio.socket.SocketType, session: Session) -> None:
    """Wait until the images may be read. Returns also when CRIU hangs up, which the next read tells.

    RemoteProtocolError if it says something meanwhile: it must get nothing before its time.
    """
    async with flat_nursery() as nursery:
        if session.servable:
            return

        async def hang_up() -> None:
            await trio.lowlevel.wait_readable(sock)
            nursery.cancel_scope.cancel()

        nursery.start_soon(hang_up)
        await session.changes.wait_until(lambda: session.servable)
        nursery.cancel_scope.cancel()
    if not session.servable and await _said_more(sock):
        raise RemoteProtocolError("criu restore went on without an answer")


async def _said_more(sock: trio.socket.SocketType) -> bool:
    try:
        return bool(await sock.recv(1))
    except ConnectionResetError:
        return False


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
    return session.state is SessionState.RUNNING


def _reason(log: Path, criu: int) -> str:
    try:
        error = cause(log.read_text(errors="replace"))
    except OSError:  # no log of ours: a person has started this CRIU
        error = None
    return error or f"criu restore (pid {criu}) ended before the process ran; its log has the reason"
