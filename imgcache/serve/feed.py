"""One conversation with `criu restore --stream`: it asks for images by name, each is spliced into the pipe it passes.

Used by a session of the cache, which makes CRIU wait until the source has sent everything, and by the drop-in streamer,
which has everything before.
"""

from collections.abc import Awaitable, Callable

import trio

from imgcache.store import ImageStore, StoredImage
from imgnode.nursery import flat_nursery
from imgnode.pipes import enlarge, splice_file
from imgnode.unix import close_all, receive_with_fds
from imgwire.errors import RemoteProtocolError
from imgwire.img_streamer import Direction, ImageRequested, ImgStreamer

#: Most bytes fed between two looks at what else there is to do.
FEED_CHUNK = 1 << 20


class Feed:
    """Images for one CRIU. `until_servable` is awaited before each answer; `fed` is told each image that went whole."""

    def __init__(
        self,
        sock: trio.socket.SocketType,
        store: ImageStore,
        *,
        release_as_read: bool,
        until_servable: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        fed: Callable[[StoredImage], None] = lambda _image: None,
    ) -> None:
        self._sock, self._store = sock, store
        self._release_as_read, self._until_servable, self._fed = release_as_read, until_servable, fed
        self._protocol = ImgStreamer(Direction.SERVE)

    async def run(self) -> None:
        """Answer until CRIU hangs up; RemoteProtocolError if it says what it should not."""
        async with flat_nursery() as nursery:
            while await self._step(nursery):
                pass

    async def _step(self, nursery: trio.Nursery) -> bool:
        """Receive once and do what it asks for; False at the end of the conversation."""
        try:
            data, fds = await receive_with_fds(self._sock, self._protocol.wanted)
        except ConnectionResetError:
            return False
        if not data:
            self._protocol.receive_eof()
            return False
        try:
            events = self._protocol.receive_data(data, len(fds))
        except RemoteProtocolError:
            close_all(fds)
            raise
        for event in events:
            if isinstance(event, ImageRequested):
                await self._until_servable()
                await self._send(self._protocol.answer(exists=self._exists(event.name)))
            else:
                nursery.start_soon(self._feed, self._store.named(event.name), fds[0])
        return True

    def _exists(self, name: str) -> bool:
        image = self._store.find(name)
        if image is not None and image.released:
            raise RemoteProtocolError(f"{name}: its memory was given back as it was read; it cannot be served again")
        return image is not None

    async def _send(self, data: bytes) -> None:
        """A few bytes into an empty socket: they go at once or CRIU is gone, which the next read tells."""
        try:
            await self._sock.send(data)
        except (BrokenPipeError, ConnectionResetError):
            return

    async def _feed(self, image: StoredImage, pipe: int) -> None:
        """Put the whole image into CRIU's pipe. CRIU may close it early: that is its right."""
        try:
            enlarge(pipe)
            for extent in image.extents():
                for start in range(0, extent.length, FEED_CHUNK):
                    size = min(FEED_CHUNK, extent.length - start)
                    await splice_file(extent.fd, extent.offset + start, size, pipe)
                if self._release_as_read:
                    image.released = True
                    self._store.arena.release(extent)
            self._fed(image)
        except BrokenPipeError:
            return
        finally:
            trio.lowlevel.notify_closing(pipe)
            close_all([pipe])
