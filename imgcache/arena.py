"""Where the bytes of a session's images lie: a memfd, and a file in the spool directory once memory is used up.

All images of a session share these two descriptors, so a thousand images need no thousand descriptors. Space is handed
out page-aligned from the end on; bytes that arrive by splice are copied once, into the page cache of the memfd, and
leave by splice from the same pages.
"""

import ctypes
import errno
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from imgnode.pipes import Pipe, splice_to_file
from imgwire.errors import UsageError

_PAGE = 4096
#: Bytes of zeroes that can be referred to: more than any process can address. They take no memory.
_ZEROES = 1 << 56
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class StoreFull(Exception):
    """No room for more image bytes: memory limit reached and no spool, or the spool is full."""


@dataclass(frozen=True, slots=True)
class Extent:
    """`length` bytes at `offset` of the file behind `fd`."""

    fd: int
    offset: int
    length: int


class MemoryBudget:
    """The memory that all sessions of a cache may fill together, in bytes. None: no limit."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.used = 0

    @property
    def left(self) -> int | None:
        """Bytes that can still be taken; None without a limit."""
        return None if self.limit is None else max(0, self.limit - self.used)

    def take(self, size: int) -> bool:
        """Take `size` bytes if they are left."""
        if self.limit is not None and self.used + size > self.limit:
            return False
        self.used += size
        return True

    def give_back(self, size: int) -> None:
        """Return what was taken."""
        self.used -= size


class _Backing:
    """A growing file: bytes are committed at its end."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.end = 0

    def place(self, after: Extent | None) -> int:
        """Where the next bytes go: right after `after` if that is the end, else on the next page."""
        if after is not None and (after.fd, after.offset + after.length) == (self.fd, self.end):
            return self.end
        return -(-self.end // _PAGE) * _PAGE


class Arena:
    """The store of one session. Not for several writers at once: the link delivers one frame after the other."""

    def __init__(self, budget: MemoryBudget, spool: Path | None) -> None:
        self._budget = budget
        self._spool = spool
        self._memory = _Backing(os.memfd_create("imgcache", os.MFD_CLOEXEC))
        self._disk: _Backing | None = None
        self._zeroes = -1
        self._taken = 0
        self._pipe = Pipe()

    @property
    def memory_bytes(self) -> int:
        """Bytes of the budget that this session holds."""
        return self._taken

    @property
    def spool_bytes(self) -> int:
        """Bytes in the spool file."""
        return self._disk.end if self._disk else 0

    @property
    def pipe(self) -> Pipe:
        """The pipe through which spliced bytes pass; empty between two frames."""
        return self._pipe

    def zeroes(self, offset: int, length: int) -> Extent:
        """Zeroes, from `offset` of a file of nothing else: two that follow each other are one extent."""
        if self._zeroes < 0:
            self._zeroes = os.memfd_create("imgcache-zeroes", os.MFD_CLOEXEC)
            os.ftruncate(self._zeroes, _ZEROES)
        return Extent(self._zeroes, offset, length)

    def owns(self, extent: Extent) -> bool:
        """Whether its bytes take room here: they are not zeroes, and not those of an archive."""
        return extent.fd in (self._memory.fd, self._disk.fd if self._disk else -1)

    def reserve(self, size: int, after: Extent | None) -> Extent:
        """Where the next `size` bytes go, after the image's last extent if possible. They count from `commit` on.

        StoreFull if there is no room.
        """
        offset = self._memory.place(after)
        growth = offset + size - self._memory.end
        if self._budget.take(growth):
            self._taken += growth
            self._memory.end = offset + size
            return Extent(self._memory.fd, offset, size)
        disk = self._open_spool()
        offset = disk.place(after)
        disk.end = offset + size
        return Extent(disk.fd, offset, size)

    def unreserve(self, extent: Extent) -> None:
        """What was to go there did not come whole: if nothing follows, the space can be reserved again."""
        backing = self._disk if self._disk and extent.fd == self._disk.fd else self._memory
        if extent.offset + extent.length == backing.end:
            backing.end = extent.offset
            if backing is self._memory:
                self._taken -= extent.length
                self._budget.give_back(extent.length)

    async def fill_from_pipe(self, target: Extent, done: int, size: int, pipe: Pipe | None = None) -> None:
        """Move `size` bytes from `pipe` (default: our own) to `target`, `done` bytes after its start."""
        reader = (pipe or self._pipe).reader
        await self._write(target, lambda: splice_to_file(reader, target.fd, target.offset + done, size))

    async def fill(self, target: Extent, done: int, data: bytes) -> None:
        """Write `data` to `target`, `done` bytes after its start."""
        await self._write(target, lambda: pwrite_all(target.fd, data, target.offset + done))

    def release(self, extent: Extent) -> None:
        """Give the memory of these bytes back; they cannot be read any more. Whole pages only, and only our own."""
        if not self.owns(extent):
            return
        start = -(-extent.offset // _PAGE) * _PAGE
        end = (extent.offset + extent.length) // _PAGE * _PAGE
        if end > start:
            punch_hole(extent.fd, start, end - start)
            if extent.fd == self._memory.fd:
                self._taken -= end - start
                self._budget.give_back(end - start)

    def reset_pipe(self) -> None:
        """After a cut in the middle of a frame: begin with an empty pipe."""
        self._pipe.close()
        self._pipe = Pipe()

    def close(self) -> None:
        """Give everything back."""
        self._pipe.close()
        self._budget.give_back(self._taken)
        self._taken = 0
        for backing in (self._memory, self._disk):
            if backing is not None and backing.fd >= 0:
                os.close(backing.fd)
                backing.fd = -1
        if self._zeroes >= 0:
            os.close(self._zeroes)
            self._zeroes = -1

    async def _write(self, target: Extent, write: Callable[[], None]) -> None:
        try:
            if target.fd == self._memory.fd:
                write()  # a copy in memory: a thread would cost more than it frees
            else:
                await trio.to_thread.run_sync(write)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
                where = "memory" if target.fd == self._memory.fd else f"the spool directory {self._spool}"
                raise StoreFull(f"no room left in {where}: {error.strerror}") from error
            raise

    def _open_spool(self) -> _Backing:
        if self._disk is None:
            if self._spool is None:
                limit = (self._budget.limit or 0) >> 20
                raise StoreFull(f"the memory limit of {limit} MiB is reached and there is no --spool directory")
            self._disk = _Backing(_unnamed_file(self._spool))
        return self._disk


def _unnamed_file(directory: Path) -> int:
    """A file that has no name, so that nothing is left of it whatever happens."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise UsageError(f"spool directory {directory}: {error.strerror}; choose another with --spool") from error
    fd, name = tempfile.mkstemp(dir=directory, prefix="imgcache-")
    Path(name).unlink()
    return fd


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Free the pages of a range of a file; it reads as zeroes afterwards."""
    if _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, offset, size) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "fallocate")


def pwrite_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data` at `offset`."""
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, offset)
        offset += written
        view = view[written:]


def pread_all(fd: int, size: int, offset: int) -> bytes:
    """Read `size` bytes at `offset`; OSError if the file ends before."""
    parts = []
    while size > 0:
        part = os.pread(fd, size, offset)
        if not part:
            raise OSError(f"{size} bytes less than expected")
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)
