"""The descriptors that the caller opened for shards: pipes, sockets or files, made into transports.

Pipes and sockets are waited for by trio. Files always seem ready, and epoll refuses them: they are written in a worker
thread, and read not at all: the images' extents then lie in the shard itself.

Whether a descriptor blocks is a property that it shares with every program that inherited it, so it is put back.
"""

import os
import select
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fcntl import F_GETFL, fcntl
from typing import TypeVar

import trio

from imgcache.arena import Arena, Extent
from imgnode.pipes import PIPE_SIZE, Pipe, enlarge, pending
from imgnode.transport import DescriptorTransport, Transport
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.frames import HEADER_SIZE, MAX_DATA

#: The least that is put into a shard at once: below it a frame costs more than its bytes do.
SMALLEST_FRAME = 1 << 16
#: What a socket is given at once. Its free space is not known; this is what TCP's buffers grow to on a good line.
SOCKET_FRAME = 1 << 18

_Opened = TypeVar("_Opened")


class ShardSink(Transport):
    """Where the frames of one shard go."""

    splices = True

    async def ready(self) -> None:
        """Wait until it takes bytes."""

    def room(self) -> int:
        """About how many bytes of payload it takes without making us wait."""
        return MAX_DATA


class StreamSink(DescriptorTransport, ShardSink):
    """A pipe or a socket."""

    def __init__(self, fd: int, capacity: int | None) -> None:
        super().__init__(fd, fd)
        self._fd, self._capacity = fd, capacity

    async def ready(self) -> None:
        await trio.lowlevel.wait_writable(self._fd)

    def room(self) -> int:
        if self._capacity is None:
            return SOCKET_FRAME
        return max(SMALLEST_FRAME, self._capacity - pending(self._fd) - HEADER_SIZE)


class FileSink(ShardSink):
    """A file or a device, written from its current position on."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    async def send_all(self, data: bytes | memoryview, *, more: bool = False) -> None:
        await trio.to_thread.run_sync(write_blocking, self._fd, data)

    async def send_pipe(self, fd: int, size: int) -> None:
        await trio.to_thread.run_sync(_splice_all, fd, self._fd, size)

    async def receive_some(self, size: int) -> bytes:
        raise trio.ClosedResourceError("a shard that is written gives nothing")

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class ShardSource(Transport):
    """Where the frames of one shard come from."""

    owned = True  #: whether its payload is put into our arena, and may be released there

    async def take(self, size: int, arena: Arena) -> Extent:
        """The next `size` bytes, left where they are or moved into `arena`. RemoteProtocolError if they end before."""
        raise NotImplementedError(f"{type(self).__name__} cannot be read")


class StreamSource(DescriptorTransport, ShardSource):
    """A pipe or a socket; payload goes through a pipe of ours into the arena, never through this program."""

    def __init__(self, fd: int, pipe: Pipe) -> None:
        super().__init__(fd, fd)
        self._pipe = pipe

    async def take(self, size: int, arena: Arena) -> Extent:
        target, done = arena.reserve(size, None), 0
        while done < size:
            moved = await self.receive_pipe(self._pipe.writer, min(size - done, self._pipe.size))
            if not moved:
                raise RemoteProtocolError("it is cut off inside a frame")
            await arena.fill_from_pipe(target, done, moved, self._pipe)
            done += moved
        return target


class FileSource(ShardSource):
    """A file, read from its current position on."""

    owned = False

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._offset = os.lseek(fd, 0, os.SEEK_CUR)
        self._end = os.lseek(fd, 0, os.SEEK_END)

    async def send_all(self, data: bytes | memoryview, *, more: bool = False) -> None:
        raise trio.ClosedResourceError("a shard that is read takes nothing")

    async def receive_some(self, size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        data = os.pread(self._fd, size, self._offset)
        self._offset += len(data)
        return data

    async def take(self, size: int, arena: Arena) -> Extent:
        await trio.lowlevel.checkpoint()
        if self._offset + size > self._end:
            raise RemoteProtocolError("it is cut off inside a frame")
        self._offset += size
        return Extent(self._fd, self._offset - size, size)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@contextmanager
def sinks(fds: Sequence[int]) -> Iterator[list[ShardSink]]:
    """The shards to write, in order; UsageError for a descriptor that cannot be one."""
    with _opened(fds, _sink) as shards:
        yield shards


@contextmanager
def sources(fds: Sequence[int]) -> Iterator[list[ShardSource]]:
    """The shards to read, in order; UsageError for a descriptor that cannot be one."""
    with ExitStack() as pipes, _opened(fds, lambda fd: _source(fd, pipes)) as shards:
        yield shards


def name(fd: int) -> str:
    """How a descriptor is called in messages."""
    return {0: "stdin", 1: "stdout", 2: "stderr"}.get(fd, f"descriptor {fd}")


def write_blocking(fd: int, data: bytes | memoryview) -> None:
    """Write all of `data`. For a worker thread; a descriptor that does not block is waited for."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            select.select([], [fd], [])


@contextmanager
def _opened(fds: Sequence[int], make: Callable[[int], _Opened]) -> Iterator[list[_Opened]]:
    with ExitStack() as restoring:
        for fd in fds:
            try:
                restoring.callback(os.set_blocking, fd, os.get_blocking(fd))
            except OSError as error:
                raise UsageError(f"shard {name(fd)}: {error.strerror}; open it before") from error
        yield [make(fd) for fd in fds]


def _sink(fd: int) -> ShardSink:
    mode = os.fstat(fd).st_mode
    if stat.S_ISFIFO(mode):
        return StreamSink(fd, enlarge(fd))
    if stat.S_ISSOCK(mode):
        return StreamSink(fd, None)
    if os.isatty(fd):
        raise UsageError(f"shard {name(fd)}: is a terminal; redirect it to a pipe or a file")
    if fcntl(fd, F_GETFL) & os.O_APPEND:
        raise UsageError(f"shard {name(fd)}: is open for appending, where pages cannot be spliced; open it with >")
    return FileSink(fd)


def _source(fd: int, pipes: ExitStack) -> ShardSource:
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return FileSource(fd)
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        raise UsageError(f"shard {name(fd)}: is no pipe, socket or file; give the one that capture wrote to")
    if stat.S_ISFIFO(mode):
        enlarge(fd)
    pipe = Pipe()
    pipes.callback(pipe.close)
    return StreamSource(fd, pipe)


def _splice_all(source: int, target: int, size: int) -> None:
    while size:
        size -= os.splice(source, target, min(size, PIPE_SIZE))
