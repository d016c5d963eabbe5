"""UNIX sockets in the images directory: CRIU's, and our own for control. Only this user's processes may use them.

The sockets are 0600 in a directory that is the user's, and the kernel tells who is at the other end (SO_PEERCRED). A
socket file that a killed program left behind is recognised (nobody answers) and replaced.
"""

import array
import os
import select
import socket
import struct
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from imgwire.errors import UsageError

_UCRED = struct.Struct("3i")
#: Descriptors are taken off a message only in this number; more are a protocol error, but must be closed by us.
_MAX_FDS = 16
#: Longest path of a socket: sun_path has 108 bytes, the last of them NUL.
_MAX_PATH = 107


@dataclass(frozen=True)
class PeerCredentials:
    """Who is at the other end of a UNIX socket. `pid` is 0 if it is in a pid namespace that we cannot see."""

    pid: int
    uid: int


def peer_credentials(sock: trio.socket.SocketType) -> PeerCredentials:
    """Who connected, as the kernel says."""
    pid, uid, _gid = _UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return PeerCredentials(pid, uid)


@asynccontextmanager
async def listening(path: Path, *, backlog: int = 16) -> AsyncIterator[trio.socket.SocketType]:
    """A listening socket at `path`, removed at the end. UsageError if another program listens there."""
    if len(os.fsencode(path)) > _MAX_PATH:
        raise UsageError(f"{path}: a socket's path has at most {_MAX_PATH} bytes; use a shorter directory or name")
    _remove_stale(path)
    sock = trio.socket.from_stdlib_socket(_bound(path))
    with sock:
        sock.listen(backlog)
        identity = path.lstat().st_ino
        try:
            yield sock
        finally:
            _remove_own(path, identity)


@contextmanager
def linked(path: Path, directories: Iterable[Path]) -> Iterator[None]:
    """Symbolic links of the same name in other directories, to a socket at `path`; removed at the end.

    UsageError if something else is there. A link that a killed program left is replaced.
    """
    links = [directory / path.name for directory in directories]
    with ExitStack() as made:
        for link in links:
            if link.is_symlink():
                link.unlink()
            try:
                link.symlink_to(path)
            except OSError as error:
                raise UsageError(f"{link}: {error.strerror}; use another directory") from error
            made.callback(link.unlink, missing_ok=True)
        yield


def allowed(credentials: PeerCredentials) -> bool:
    """Whether a peer may talk to us: it is root or the same user."""
    return credentials.uid in (0, os.geteuid())


def readable(sock: trio.socket.SocketType) -> bool:
    """Whether something has come on `sock`, be it its end."""
    poll = select.poll()
    poll.register(sock.fileno(), select.POLLIN)
    return bool(poll.poll(0))


async def receive_with_fds(sock: trio.socket.SocketType, size: int) -> tuple[bytes, list[int]]:
    """Receive up to `size` bytes and the descriptors that came with them; the caller owns those."""
    space = socket.CMSG_SPACE(_MAX_FDS * array.array("i").itemsize)
    data, ancillary, flags, _address = await sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    fds = [
        fd
        for level, kind, raw in ancillary
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for fd in _ints(raw)
    ]
    if flags & socket.MSG_CTRUNC:
        close_all(fds)
        raise OSError("descriptors were lost on the way: is the limit on open files (RLIMIT_NOFILE) too low?")
    return data, fds


def close_all(fds: list[int]) -> None:
    """Close descriptors that nobody wants."""
    for fd in fds:
        os.close(fd)


def _ints(raw: bytes) -> list[int]:
    fds = array.array("i")
    fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    return fds.tolist()


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        if path.exists() or path.is_symlink():
            raise UsageError(f"{path}: exists and is not a socket; remove it or use another directory")
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except BlockingIOError:  # its backlog is full: somebody listens
            pass
    raise UsageError(f"{path}: another program listens there; stop it or use another directory")


def _remove_own(path: Path, inode: int) -> None:
    """Remove our socket file, not one that another program has put there since."""
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        return


def _bound(path: Path) -> socket.socket:
    """A socket bound to `path`, mode 0600. No checkpoint: the umask is that of the whole process."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        sock.bind(os.fspath(path))
    except OSError as error:
        sock.close()
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
    finally:
        os.umask(before)
    return sock
