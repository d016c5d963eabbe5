"""`imgproxy` for whoever asks on a socket, and an `imgcache`, loaded once: emulated, that takes ten seconds.

zdtm runs each test in namespaces of its own, and so does the CRIU that dumps it. Each imgproxy is a process of its own,
in the namespaces of who asks for it. A request is a line of JSON, `[arguments, until, place]`; the answer is a line,
what its stderr has as soon as that has `until`, or at its end. At its end the file `place`, whose lock it has, has its
exit code, stdout and stderr.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import imgcache.__main__
import imgproxy.__main__
from imgcache import cli as cache_cli
from imgproxy import cli as proxy_cli

NAMESPACES = ("ipc", "net", "pid", "time", "mnt")


def serve(path: str, *cache: str) -> None:
    """Run an imgcache with these arguments, and answer until killed."""
    assert proxy_cli.app and cache_cli.app, "all of it is loaded"
    if os.fork() == 0:
        _become(imgcache.__main__.main, cache, 2, 2)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        while True:
            connection, _ = listener.accept()
            with connection:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    listener.close()
                    _answer(connection)
                    os._exit(0)


def _answer(connection: socket.socket) -> None:
    peer: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    words, until, place = json.loads(connection.makefile().readline())
    _join(peer)
    kept = os.open(place, os.O_WRONLY | os.O_CREAT, 0o600)
    fcntl.flock(kept, fcntl.LOCK_EX)
    reading, writing = os.pipe()
    stdout, stderr = os.memfd_create("stdout"), ""
    child = os.fork()
    if child == 0:
        _become(imgproxy.__main__.main, words, stdout, writing)
    os.close(writing)
    while data := os.read(reading, 1 << 16):
        stderr += data.decode()
        if until in stderr:
            _tell(connection, stderr)
    _tell(connection, stderr)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.write(kept, json.dumps([code, os.pread(stdout, 1 << 20, 0).decode(), stderr]).encode())


def _tell(connection: socket.socket, stderr: str) -> None:
    """Once; whoever asked goes on then."""
    if connection.fileno() >= 0:
        connection.sendall(json.dumps(stderr).encode() + b"\n")
        connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def _join(peer: int) -> None:
    """What comes after us is where the peer is: in its namespaces and its directory."""
    directory = str(Path(f"/proc/{peer}/cwd").readlink())
    opened = [os.open(f"/proc/{peer}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in NAMESPACES]
    for namespace in opened:
        if ctypes.CDLL(None, use_errno=True).setns(namespace, 0):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(namespace)
    os.chdir(directory)


def _become(main: Callable[[], None], words: Sequence[str], stdout: int, stderr: int) -> None:
    """Run a program to its end, and end."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for number, fd in enumerate((nothing, stdout, stderr)):
        os.dup2(fd, number)
    os.closerange(3, 64)
    sys.argv = [main.__module__, *words]
    main()
    os._exit(0)


if __name__ == "__main__":
    serve(*sys.argv[1:])
