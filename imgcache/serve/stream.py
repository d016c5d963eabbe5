"""`criu restore --stream` on its socket: images are fed from the store as CRIU asks for them.

The socket listens long before there is anything to serve, so the restore can be started first: CRIU waits for our
answer without a time limit. It gets one only when the whole set is here.
"""

import trio

from imgcache.image import StoredImage
from imgcache.leftovers import Leftovers
from imgcache.serve.attempt import attend
from imgcache.serve.feed import Feed
from imgcache.session import Session
from imgnode.nursery import flat_nursery
from imgwire.errors import RemoteProtocolError
from imgwire.names import image_kind, is_pages


async def serve_restore(
    sock: trio.socket.SocketType, session: Session, *, criu: int, hooked: bool, release_as_read: bool = False
) -> None:
    """Serve one `criu restore` (pid `criu`, 0 if unknown) and see how it ends."""
    await attend(
        session,
        criu=criu,
        hooked=hooked,
        serve=lambda leftovers: _serve_images(sock, session, leftovers, release_as_read),
        let_go=sock.close,
    )


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
            session.images,
            release_as_read=release_as_read and session.kept is None,
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
