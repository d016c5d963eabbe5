"""Who owns the other end of a loopback connection, with real sockets and a real other user."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from imgnode.tcp_peer import is_trusted

pytestmark = pytest.mark.t1

NOBODY = 65534

CONNECT = """
import os, socket, sys
"".encode("idna")  # loaded while it can be: connect needs it, and that user may not read our Python
os.setuid(int(sys.argv[2]))
sock = socket.create_connection((sys.argv[3], int(sys.argv[1])))
sock.recv(1)
"""


@contextmanager
def _connecting(port: int, uid: int, host: str) -> Iterator[None]:
    """A process of `uid` connects and stays."""
    client = subprocess.Popen([sys.executable, "-S", "-c", CONNECT, str(port), str(uid), host])
    try:
        yield
    finally:
        client.kill()
        client.wait()


async def _peer_as(uid: int, family: socket.AddressFamily, host: str, connect_to: str) -> bool:
    """Whether a connection made by `uid` is trusted."""
    with trio.socket.socket(family) as listener:
        await listener.bind((host, 0))
        listener.listen()
        with _connecting(listener.getsockname()[1], uid, connect_to):
            with trio.fail_after(10):
                sock, _ = await listener.accept()
            with sock:
                return is_trusted(sock)


@pytest.mark.parametrize(
    ("family", "host", "connect_to"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::", "127.0.0.1"),
    ],
)
async def test_the_uid_of_a_local_peer_decides(family: socket.AddressFamily, host: str, connect_to: str) -> None:
    assert await _peer_as(os.geteuid(), family, host, connect_to)
    assert not await _peer_as(NOBODY, family, host, connect_to)
