"""One conversation with `criu restore --stream`: it asks for images by name, each is spliced into the pipe it passes.

Used by a session of the cache, which makes CRIU wait until the source has sent everything, and by the drop-in streamer,
which has everything before.
"""

import os
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Protocol

import trio

from imgcache.arena import Extent
from imgcache.image import StoredImage
from imgnode.nursery import flat_nursery
from imgnode.pipes import PIPE_SIZE, enlarge, splice_file
from imgnode.unix import close_all, receive_with_fds
from imgwire.errors import RemoteProtocolError
from imgwire.img_streamer import Direction, ImageRequested, ImgStreamer

#: Images from this size on are fed by a thread that blocks in the kernel. CRIU empties the pipe with one long read and
#: wakes us only then; woken in the kernel, the thread has it full again sooner than an event loop: 10 % of a restore.
LARGE = 1 << 20
#: Most bytes that a thread feeds at a time, and that are given back at once; in extents of a page, 16384 of them.
PIECE = 64 << 20
#: Threads at once: a CRIU reads an image or two at a time, and a stuck one holds its thread until it is killed.
THREADS = 256


class Images(Protocol):
    """What a restore is given."""

    def find(self, name: str) -> StoredImage | None:
        """The image of that name."""

    def named(self, name: str) -> StoredImage:
        """The image of that name, which must exist."""
        ...

    def release(self, extent: Extent) -> None:
        """These bytes were read and are not read again."""


class Feed:
    """Images for one CRIU. `until_servable` is awaited before each answer; `fed` is told each image that went whole."""

    def __init__(
        self,
        sock: trio.socket.SocketType,
        images: Images,
        *,
        release_as_read: bool,
        until_servable: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        fed: Callable[[StoredImage], None] = lambda _image: None,
    ) -> None:
        self._sock, self._images = sock, images
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
                nursery.start_soon(self._feed, self._images.named(event.name), fds[0])
        return True

    def _exists(self, name: str) -> bool:
        image = self._images.find(name)
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
            await feed_pipe(image, pipe, lambda piece: self._release(image, piece))
            self._fed(image)
        except BrokenPipeError:
            return
        finally:
            trio.lowlevel.notify_closing(pipe)
            close_all([pipe])

    def _release(self, image: StoredImage, piece: Extent) -> None:
        if self._release_as_read:
            image.released = True
            self._images.release(piece)


async def feed_pipe(image: StoredImage, pipe: int, gone: Callable[[Extent], None] = lambda _piece: None) -> None:
    """Put the image into CRIU's pipe; `gone` is told each part that is in it. BrokenPipeError if CRIU wants no more."""
    enlarge(pipe)
    for pieces in _batches(image):
        if image.size < LARGE:
            for piece in pieces:
                await splice_file(piece.fd, piece.offset, piece.length, pipe)
        else:
            await _feed_in_thread(pieces, pipe)
        for piece in pieces:
            gone(piece)


_limiter: "trio.lowlevel.RunVar[trio.CapacityLimiter]" = trio.lowlevel.RunVar("feed_threads")


def _threads() -> trio.CapacityLimiter:
    try:
        return _limiter.get()
    except LookupError:
        limiter = trio.CapacityLimiter(THREADS)
        _limiter.set(limiter)
        return limiter


async def _feed_in_thread(pieces: Sequence[Extent], pipe: int) -> None:
    """`_splice_blocking` in a thread, which ends at once on cancellation although it sleeps in the kernel."""
    done = False

    async def wake_on_cancel() -> None:
        try:
            await trio.sleep_forever()
        finally:
            if not done:
                _wake(pipe)

    os.set_blocking(pipe, True)
    async with flat_nursery() as nursery:
        nursery.start_soon(wake_on_cancel)
        await trio.to_thread.run_sync(_splice_blocking, pieces, pipe, limiter=_threads())
        done = True
        nursery.cancel_scope.cancel()


def _wake(pipe: int) -> None:
    """End a splice that sleeps because the pipe is full: let it not block any more, and make room for a page."""
    os.set_blocking(pipe, False)
    reader = os.open(f"/proc/self/fd/{pipe}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.read(reader, PIPE_SIZE)
    except BlockingIOError:  # it was empty: nobody sleeps
        return
    finally:
        os.close(reader)


def _batches(image: StoredImage) -> Iterator[list[Extent]]:
    """The image in parts of PIECE bytes or less, each a list of extents: they may be as small as a page."""
    for start in range(0, image.size, PIECE):
        yield list(image.extents(start, min(PIECE, image.size - start)))


def _splice_blocking(pieces: Sequence[Extent], pipe: int) -> None:
    """Move all of `pieces` into the pipe, sleeping while it is full; stop early if it was set not to block."""
    for piece in pieces:
        offset, left = piece.offset, piece.length
        while left > 0:
            try:
                moved = os.splice(piece.fd, pipe, left, offset_src=offset, flags=os.SPLICE_F_MOVE)
            except BlockingIOError:
                return
            if not moved:
                raise OSError(f"the stored image ends {left} bytes before its size")
            offset += moved
            left -= moved
