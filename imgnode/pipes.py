"""Pipes, and moving what is in them without looking at it: splice, tee, discard.

CRIU hands over one pipe per image. Page payload goes from it to the socket by `splice`; so that a cut of the
connection loses nothing, `tee` first leaves a second reference to the same pages in a pipe of ours (no copy, no
memory: the pages belong to the frozen process).

All of these are single system calls on descriptors that never block (SPLICE_F_NONBLOCK); the waiting is done by trio
around them.
"""

import ctypes
import fcntl
import os
import struct
import termios
from collections.abc import Callable

import trio

#: The largest pipe that needs no privilege (/proc/sys/fs/pipe-max-size as shipped): 256 pages.
PIPE_SIZE = 1 << 20

_NONBLOCK = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.tee.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_size_t, ctypes.c_uint)
_libc.tee.restype = ctypes.c_ssize_t


class Pipe:
    """A pipe that we own, as large as we may have it, at most `limit`. `size` is its capacity in bytes."""

    def __init__(self, limit: int = PIPE_SIZE) -> None:
        self.reader, self.writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.size = enlarge(self.writer, limit)

    def close_writer(self) -> None:
        """Nothing more comes: the reader finds the end of file."""
        fd, self.writer = self.writer, -1
        trio.lowlevel.notify_closing(fd)
        os.close(fd)

    def close(self) -> None:
        """Close both ends; calling it again does nothing."""
        # -1 afterwards: a number that the kernel may have given to somebody else is never used again.
        fds, (self.reader, self.writer) = (self.reader, self.writer), (-1, -1)
        for fd in fds:
            if fd >= 0:
                trio.lowlevel.notify_closing(fd)
                os.close(fd)


def enlarge(fd: int, limit: int = PIPE_SIZE) -> int:
    """Make the pipe behind `fd` as large as allowed, at most `limit`; return its size."""
    try:
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, limit)
    except PermissionError:  # the user's pipe pages are used up: slower, not wrong
        return fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)


def pending(fd: int) -> int:
    """How many bytes can be read from the pipe now."""
    raw = fcntl.ioctl(fd, termios.FIONREAD, b"\0" * 4)
    size: int = struct.unpack("i", raw)[0]
    return size


def tee(source: int, target: int, size: int) -> int:
    """Duplicate up to `size` bytes of pipe `source` into pipe `target`; return how many. BlockingIOError if none."""
    moved: int = _libc.tee(source, target, size, _NONBLOCK)
    if moved < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), "tee")
    return moved


class Sink:
    """`/dev/null`, for dropping what a pipe holds without reading it."""

    def __init__(self) -> None:
        self._fd = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)

    def discard(self, fd: int, size: int) -> None:
        """Drop `size` bytes that are known to be in the pipe."""
        while size > 0:
            size -= os.splice(fd, self._fd, size, flags=_NONBLOCK)

    def close(self) -> None:
        """Close it; calling it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


async def splice_out(source: int, target: int, size: int, *, more: bool = False) -> None:
    """Move `size` bytes that are in pipe `source` to `target` (a socket or a pipe), waiting while it is full."""
    flags = _NONBLOCK | (os.SPLICE_F_MORE if more else 0)
    while size > 0:
        try:
            moved = os.splice(source, target, size, flags=flags)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(target)
            continue
        if not moved:
            raise BrokenPipeError(f"{size} bytes less than announced")
        size -= moved


async def splice_in(source: int, target: int, size: int) -> int:
    """Move up to `size` bytes from `source` (a socket or a pipe) into pipe `target`; 0 at end of file."""
    while True:
        try:
            return os.splice(source, target, size, flags=_NONBLOCK)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(source)


async def splice_some(source: int, pipe: Pipe, size: int) -> int:
    """Move up to `size` bytes from the socket `source` into `pipe`, waiting for both; 0 at the end of the stream."""
    while True:
        try:
            return os.splice(source, pipe.writer, min(size, pipe.size), flags=_NONBLOCK)
        except BlockingIOError:
            if pending(source):
                await trio.lowlevel.wait_writable(pipe.writer)
            else:
                await trio.lowlevel.wait_readable(source)


async def splice_all(source: int, pipe: Pipe) -> None:
    """Move all that comes from the socket `source` into `pipe` until its end, then close the pipe's writer."""
    while await splice_some(source, pipe, pipe.size):
        await trio.lowlevel.checkpoint()
    pipe.close_writer()


async def splice_file(file: int, offset: int, size: int, target: int) -> None:
    """Move `size` bytes of `file` from `offset` on into pipe `target`, waiting while it is full."""
    end = offset + size

    def step(left: int) -> int:
        return os.splice(file, target, left, offset_src=end - left, flags=_NONBLOCK)

    await _moved(step, size, target)


async def send_file(file: int, offset: int, size: int, sock: int) -> None:
    """Move `size` bytes of `file` from `offset` on into a socket that does not block."""
    end = offset + size
    await _moved(lambda left: os.sendfile(sock, file, end - left, left), size, sock)


def splice_to_file(source: int, file: int, offset: int, size: int) -> None:
    """Move `size` bytes that are in pipe `source` into `file` at `offset`. Copies; blocks only on a disk."""
    while size > 0:
        moved = os.splice(source, file, size, offset_dst=offset)
        offset += moved
        size -= moved


async def read_some(fd: int, size: int) -> bytes:
    """Read up to `size` bytes from a pipe or a socket; b"" at end of file."""
    while True:
        try:
            return os.read(fd, size)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)


async def write_all(fd: int, data: bytes) -> None:
    """Write all of `data` to a pipe that does not block."""
    view = memoryview(data)
    await _moved(lambda left: os.write(fd, view[len(view) - left :]), len(view), fd)


async def _moved(step: Callable[[int], int], size: int, target: int) -> None:
    """Repeat `step(bytes left)` until `size` bytes went to `target`; a checkpoint is where it is full."""
    while size > 0:
        try:
            moved = step(size)
        except BlockingIOError:
            await trio.lowlevel.wait_writable(target)
            continue
        if not moved:
            raise BrokenPipeError(f"{size} bytes less than announced")
        size -= moved
