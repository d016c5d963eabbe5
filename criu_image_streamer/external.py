"""External files: what the caller wants beside the images, such as a tar of the file system that belongs to them.

They go the way of an image, under the name that the caller gives. On the way back such a file is not stored: it is
written to its descriptor as it comes, in order. Its shard waits when it is too far ahead of that.

That cannot wait for ever: a shard only waits for bytes of lower offset in the same file. Those were written into their
shard before, and are behind nothing that was written later.
"""

import os
import stat
from typing import TYPE_CHECKING

import trio
import xxhash

from criu_image_streamer.descriptors import ShardSource, name, write_blocking
from imgcache.arena import Arena, Extent, pread_all
from imgnode.nursery import flat_nursery
from imgnode.pipes import PIPE_SIZE, Pipe
from imgnode.signalling import Changes
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.messages import EndImage

if TYPE_CHECKING:  # only capture has one, and it takes longer to load than a small checkpoint to serve
    from imgproxy.sender import ImageSender

#: Bytes of one external file that may be stored because earlier ones are still missing or not yet written.
WINDOW = 16 << 20


async def take_external(sender: "ImageSender", file: str, fd: int) -> None:
    """Send what comes out of the caller's descriptor as the image `file`."""
    if stat.S_ISFIFO(_stat(file, fd).st_mode):
        blocking = os.get_blocking(fd)
        try:
            await sender.send_from_pipe(file, fd)
        finally:
            os.set_blocking(fd, blocking)
        return
    pipe = Pipe()
    try:
        async with flat_nursery() as nursery:
            nursery.start_soon(_relay, fd, pipe)
            await sender.send_from_pipe(file, pipe.reader)
    finally:
        pipe.close()


async def _relay(fd: int, pipe: Pipe) -> None:
    """Put a file or a socket into a pipe, in a thread that blocks."""
    os.set_blocking(pipe.writer, True)
    await trio.to_thread.run_sync(_copy_until_end, fd, pipe.writer, abandon_on_cancel=True)
    pipe.close_writer()


def _stat(file: str, fd: int) -> os.stat_result:
    try:
        return os.fstat(fd)
    except OSError as error:
        raise UsageError(f"external file {file}: {name(fd)}: {error.strerror}; open it before") from error


def _copy_until_end(source: int, target: int) -> None:
    while data := os.read(source, PIPE_SIZE):
        write_blocking(target, data)


class ExternalOutput:
    """One external file on its way to the caller's descriptor."""

    def __init__(self, file: str, fd: int) -> None:
        _stat(file, fd)
        self.file = file
        self._fd = fd
        self._changes = Changes()
        self._waiting: dict[int, tuple[Extent, ShardSource]] = {}
        self._written = 0
        self._end: EndImage | None = None
        self._digest = xxhash.xxh3_128()

    async def admit(self, offset: int) -> None:
        """Wait until the bytes at `offset` may be stored."""
        await self._changes.wait_until(lambda: offset < self._written + WINDOW)

    def put(self, offset: int, extent: Extent, source: ShardSource) -> None:
        """The bytes at `offset` are here."""
        if offset < self._written or offset in self._waiting:
            raise RemoteProtocolError(f"{self.file}: its bytes at {offset} came twice")
        self._waiting[offset] = (extent, source)
        self._changes.notify()

    def end(self, message: EndImage) -> None:
        """How long it is, and its digest."""
        self._end = message
        self._changes.notify()

    async def run(self, arena: Arena) -> None:
        """Write the file as it comes, to its end; RemoteProtocolError if it is not what was captured."""
        while True:
            await self._changes.wait_until(lambda: self._written in self._waiting or self._at_end)
            if self._at_end:
                break
            extent, source = self._waiting.pop(self._written)
            await trio.to_thread.run_sync(self._write, extent, abandon_on_cancel=True)
            if source.owned:
                arena.release(extent)
            self._written += extent.length
            self._changes.notify()
        self._check()
        os.close(self._fd)  # its reader finds the end of file

    @property
    def _at_end(self) -> bool:
        return self._end is not None and self._written >= self._end.size

    def _write(self, extent: Extent) -> None:
        data = pread_all(extent.fd, extent.length, extent.offset)
        self._digest.update(data)
        try:
            write_blocking(self._fd, data)
        except OSError as error:
            raise OSError(f"external file {self.file}: {name(self._fd)}: {error.strerror}") from error

    def _check(self) -> None:
        assert self._end is not None
        if self._waiting or self._written != self._end.size:
            raise RemoteProtocolError(f"{self.file}: {self._end.size} bytes were captured, more came")
        if self._end.digest not in (None, self._digest.digest()):
            raise RemoteProtocolError(f"{self.file}: its bytes are not those that were captured (digest differs)")
