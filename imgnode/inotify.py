"""What happens to the files of a directory, told by the kernel (inotify(7)) instead of looked for.

Three system calls through libc, which `imgnode.pipes` calls, too: the libraries there are wrap the same three, and wait
in `poll` or a thread of their own, where trio is to wait.
"""

import ctypes
import os
import struct
from pathlib import Path

import trio

_libc = ctypes.CDLL(None, use_errno=True)

_CLOSE_WRITE = 0x8  # of <sys/inotify.h>
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows
#: Bytes read at a time: 15 events at least, for a name has at most 255 bytes and is padded.
_SIZE = 4096


class ClosedFiles:
    """The files of one directory that a writer has closed."""

    def __init__(self, directory: Path) -> None:
        """OSError with the path if it cannot be watched."""
        self._fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC), directory)
        try:
            _checked(_libc.inotify_add_watch(self._fd, os.fsencode(directory), _CLOSE_WRITE), directory)
        except OSError:
            os.close(self._fd)
            raise

    async def wait(self) -> None:
        """Until there are some."""
        await trio.lowlevel.wait_readable(self._fd)

    def take(self) -> list[str]:
        """Their names, in the order in which they were closed, each as often as it was; none twice.

        The kernel notes it before the close returns: afterwards it is here. It drops what nobody takes, beyond 16,384.
        """
        names: list[str] = []
        while True:
            try:
                data = os.read(self._fd, _SIZE)
            except BlockingIOError:
                return names
            names += _names(data)

    def close(self) -> None:
        """Watch no longer; calling it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


def _names(data: bytes) -> list[str]:
    found, at = [], 0
    while at < len(data):
        _watch, mask, _cookie, length = _EVENT.unpack_from(data, at)
        at += _EVENT.size + length
        if mask & _CLOSE_WRITE:
            found.append(os.fsdecode(data[at - length : at].rstrip(b"\0")))
    return found


def _checked(result: int, directory: Path) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(directory))
    return result
