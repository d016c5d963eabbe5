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

from imgcache.leftovers import Leftovers
from imgcache.session import Attempt, Session
from imgcache.store import StoredImage
from imgnode.criu import last_error
from imgnode.nursery import flat_nursery
from imgnode.pipes import enlarge, splice_file
from imgnode.process import watch
from imgnode.unix import close_all, receive_with_fds
from imgwire.errors import RemoteProtocolError
from imgwire.img_streamer import Direction, ImageRequested, ImgStreamer
from imgwire.names import image_kind
from imgwire.states import SessionState

#: Most bytes fed between two looks at what else there is to do.
FEED_CHUNK = 1 << 20

_log = structlog.get_logger()


async def serve_restore(
    sock: trio.socket.SocketType, session: Session, *, criu: int, hooked: bool, release_as_read: bool = False
) -> None:
    """Serve one `criu restore` (pid `criu`, 0 if unknown) and see how it ends."""
    leftovers = await Leftovers.watch(criu)
    session.begin(Attempt(criu, hooked))
    try:
        async with _while_worthwhile(session, criu):
            await _serve_images(sock, session, release_as_read)
            sock.close()
            if criu:
                await session.changes.wait_until(lambda: session.state is SessionState.RUNNING)
    except RemoteProtocolError as error:
        _log.warning("criu restore is not understood", session=session.name, error=str(error))
    finally:
        sock.close()
        with trio.CancelScope(shield=True):
            await _conclude(session, criu, leftovers)


async def _serve_images(sock: trio.socket.SocketType, session: Session, release_as_read: bool) -> None:
    with session.reading():
        protocol = ImgStreamer(Direction.SERVE)
        async with flat_nursery() as nursery:
            while await _step(sock, session, protocol, nursery, release_as_read):
                pass


async def _step(
    sock: trio.socket.SocketType,
    session: Session,
    protocol: ImgStreamer,
    nursery: trio.Nursery,
    release_as_read: bool,
) -> bool:
    """Receive once and do what it asks for; False at the end of the conversation."""
    try:
        data, fds = await receive_with_fds(sock, protocol.wanted)
        if not data:
            protocol.receive_eof()
            return False
        events = protocol.receive_data(data, len(fds))
    except ConnectionResetError:
        return False
    except RemoteProtocolError:
        close_all(fds)
        raise
    for event in events:
        if isinstance(event, ImageRequested):
            await _until_servable(sock, session)
            exists = session.store.find(event.name) is not None
            await _send(sock, protocol.answer(exists=exists))
        else:
            nursery.start_soon(_feed, session, session.store.named(event.name), fds[0], release_as_read)
    return True


async def _send(sock: trio.socket.SocketType, data: bytes) -> None:
    """A few bytes into an empty socket: they go at once or CRIU is gone, which the next read tells."""
    try:
        await sock.send(data)
    except (BrokenPipeError, ConnectionResetError):
        return


async def _until_servable(sock: trio.socket.SocketType, session: Session) -> None:
    """Wait until the images may be read. Returns also when CRIU hangs up, which the next read tells."""
    async with flat_nursery() as nursery:
        if session.servable:
            return

        async def hang_up() -> None:
            await trio.lowlevel.wait_readable(sock)
            nursery.cancel_scope.cancel()

        nursery.start_soon(hang_up)
        await session.changes.wait_until(lambda: session.servable)
        nursery.cancel_scope.cancel()


async def _feed(session: Session, image: StoredImage, pipe: int, release_as_read: bool) -> None:
    """Put the whole image into CRIU's pipe. CRIU may close it early: that is its right."""
    try:
        enlarge(pipe)
        for extent in image.extents():
            for start in range(0, extent.length, FEED_CHUNK):
                size = min(FEED_CHUNK, extent.length - start)
                await splice_file(extent.fd, extent.offset + start, size, pipe)
            if release_as_read:
                session.store.arena.release(extent)
        session.metrics.image_bytes.labels("out", image_kind(image.name)).inc(image.size)
    except BrokenPipeError:
        return
    finally:
        trio.lowlevel.notify_closing(pipe)
        close_all([pipe])


@asynccontextmanager
async def _while_worthwhile(session: Session, criu: int) -> AsyncIterator[None]:
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
            nursery.cancel_scope.cancel()

        nursery.start_soon(aborted)
        if criu:
            nursery.start_soon(dead)
        yield
        nursery.cancel_scope.cancel()


async def _conclude(session: Session, criu: int, leftovers: Leftovers) -> None:
    """CRIU has ended or the session has: find out what runs, clear away what does not."""
    if session.state is SessionState.RUNNING:
        session.attempt = None
        return
    if criu:
        with trio.move_on_after(leftovers.PATIENCE):
            await watch(criu)
    attempt = session.attempt
    if attempt and session.state is SessionState.COMMITTED and await leftovers.runs(session, attempt.init):
        session.running()
        session.attempt = None
        return
    await leftovers.clear(attempt.init if attempt else 0)
    session.restore_failed(_reason(session.directory / "restore.log", criu))


def _reason(log: Path, criu: int) -> str:
    try:
        error = last_error(log.read_text(errors="replace"))
    except OSError:  # no log of ours: a person has started this CRIU
        error = None
    return error or f"criu restore (pid {criu}) ended before the process ran; its log has the reason"
