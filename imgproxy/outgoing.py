"""Where a session's images go: the link's channel, or an archive file. What the sender needs of either."""

import os
import select
import tempfile
from pathlib import Path
from typing import Protocol

import trio

from imgnode.pipes import pending, splice_to_file
from imgwire import messages
from imgwire.errors import UsageError
from imgwire.frames import FLAG_ZSTD, MAX_DATA, FrameType, Header


class Outgoing(Protocol):
    """An ordered channel for messages and image data."""

    splices: bool

    async def send(self, message: messages.Message) -> None:
        """Send a control message."""

    async def send_bytes(self, image: int, offset: int, data: bytes, *, raw_length: int | None = None) -> None:
        """Send image bytes; `raw_length` given: they are one zstd frame of that many bytes."""

    async def send_pipe(self, image: int, offset: int, fd: int) -> int:
        """Send what is in a pipe; return how many bytes, 0 at its end. BlockingIOError if it is empty."""
        ...


class ArchiveWriter:
    """Writes the frames of a session to a file, which has its name only once it is whole and on disk."""

    splices = True
    compresses = True
    outcome = "parked"

    def __init__(self, path: Path, hello: messages.Hello) -> None:
        self.path = path
        self._seq = 0
        self._lock = trio.Lock()
        if path.exists():
            raise UsageError(f"{path}: exists already; choose another name or remove it")
        try:
            self._fd, self._staged = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        except OSError as error:
            raise UsageError(f"{path.parent}: {error.strerror}; choose another place for the archive") from error
        payload = messages.encode(hello)
        os.write(self._fd, Header(FrameType.HELLO, len(payload)).encode() + payload)

    async def send(self, message: messages.Message) -> None:
        """Append a message."""
        payload = messages.encode(message)
        async with self._lock:
            await self._append(Header(FrameType.CONTROL, len(payload), self._next()), payload)

    async def send_bytes(self, image: int, offset: int, data: bytes, *, raw_length: int | None = None) -> None:
        """Append image bytes."""
        flags, raw = (0, len(data)) if raw_length is None else (FLAG_ZSTD, raw_length)
        async with self._lock:
            await self._append(Header(FrameType.DATA, len(data), self._next(), flags, image, offset, raw), data)

    async def send_pipe(self, image: int, offset: int, fd: int) -> int:
        """Append what is in a pipe, without copying it through this program."""
        size = min(readable_size(fd), MAX_DATA)
        if not size:
            return 0
        async with self._lock:
            header = Header(FrameType.DATA, size, self._next(), 0, image, offset, size)
            await self._append(header, b"")
            end = os.lseek(self._fd, 0, os.SEEK_END)
            await trio.to_thread.run_sync(splice_to_file, fd, self._fd, end, size)
        return size

    async def finish(self) -> None:
        """Everything is written: put it on disk, then give it its name."""
        os.write(self._fd, Header(FrameType.BYE).encode())
        await trio.to_thread.run_sync(os.fsync, self._fd)
        os.link(self._staged, self.path)  # unlike rename, never over a file that came meanwhile

    def close(self) -> None:
        """Close the file; one that was not finished leaves nothing behind."""
        os.close(self._fd)
        Path(self._staged).unlink()

    def _next(self) -> int:
        self._seq += 1
        return self._seq

    async def _append(self, header: Header, payload: bytes) -> None:
        raw = header.encode() + payload
        await trio.to_thread.run_sync(write_at_end, self._fd, raw)


def readable_size(fd: int) -> int:
    """Bytes that can be read from the pipe `fd` now; 0 at its end. BlockingIOError if it is empty."""
    size = pending(fd)
    if size:
        return size
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    state = dict(poll.poll(0)).get(fd, 0)
    if not state:
        raise BlockingIOError("the pipe is empty")
    return pending(fd) if state & select.POLLIN else 0  # only hung up: its end


def write_at_end(fd: int, data: bytes) -> None:
    """Append all of `data` to the file `fd`."""
    os.lseek(fd, 0, os.SEEK_END)
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
