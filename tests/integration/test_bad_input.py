"""Peers that do what they should not: the one at fault hears of it, nobody else does."""

import struct
import sys
from pathlib import Path

import pytest
import trio

from tests.nodes import Node, Nodes, Program, assert_runs, dump, migrate, start_cache, start_proxy

pytestmark = pytest.mark.t2

NOBODY = 65534

CONNECT_AS = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
sock = socket.socket(socket.AF_UNIX)
try:
    sock.connect(sys.argv[1])
except PermissionError:
    sys.exit(13)
sys.exit(1 if sock.recv(1) else 0)
"""


async def _send(address: str, data: bytes) -> bytes:
    """Send, then read until the other side closes."""
    host, _, port = address.rpartition(":")
    answer = b""
    with trio.fail_after(20):
        stream = await trio.open_tcp_stream(host, int(port))
        async with stream:
            try:
                await stream.send_all(data)
                async for part in stream:
                    answer += part
            except trio.BrokenResourceError:
                return answer
    return answer


async def _turned_away(path: Path, data: bytes) -> bool:
    """Whether a socket of ours closes on who sends this: with or without taking all of it first."""
    with trio.fail_after(20):
        async with await trio.open_unix_socket(path) as stream:
            try:
                await stream.send_all(data)
                return await stream.receive_some() == b""
            except trio.BrokenResourceError:
                return True


async def _still_works(nodes: Nodes, a: Node, b: Node, cache: Program, criu: Path) -> None:
    check = await nodes.start_memcheck(a)
    done = await migrate(a, check.pid, cache.address, criu)
    assert done.code == 0, done.output
    await assert_runs(check, b)
    assert await cache.stop() == 0


@pytest.mark.parametrize(
    "data",
    [b"GET / HTTP/1.1\r\n" + 99 * b"Header: x\r\n", b"\xff" * 4096, b"\0" * 4096, struct.pack(">I", 0xFFFFFFFF) * 16],
    ids=["http", "ones", "zeroes", "lengths"],
)
async def test_garbage_at_the_caches_port(nodes: Nodes, a: Node, b: Node, criu_latest: Path, data: bytes) -> None:
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    await _send(cache.address, data)
    await cache.wait_log("a connection does not follow the protocol")
    await _still_works(nodes, a, b, cache, criu_latest)


async def test_silence_at_the_caches_port(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    assert await _send(cache.address, b"") == b"", "closed after the time for a greeting"
    await _still_works(nodes, a, b, cache, criu_latest)


async def test_garbage_in_place_of_criu(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """It has not announced itself, or does not speak CRIU's protocol: the sockets stay for the real one."""
    cache = await start_cache(b)
    proxy = await start_proxy(a, cache.address)
    for path in (a.directory / "streamer-capture.sock", b.directory / "streamer-serve.sock"):
        for data in (b"\xff" * 64, struct.pack("<I", 0xFFFFFFFF) + b"x" * 64):
            assert await _turned_away(path, data)
    check = await nodes.start_memcheck(a)
    assert await dump(a, criu_latest, check.pid).wait() == 0
    assert (await proxy.ended()).code == 0
    assert await cache.stop() == 0


async def test_a_second_dump(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """A proxy takes one; another CRIU is turned away and its process runs on."""
    checks = [await nodes.start_memcheck(a, size=8 << 20), await nodes.start_memcheck(a)]
    cache = await start_cache(b)
    proxy = await start_proxy(a, cache.address, "--limit-rate", "8MB", "--compress", "off")
    first = dump(a, criu_latest, checks[0].pid)
    await cache.wait_log("session opened")
    second = await a.run(criu_latest, "dump", "--stream", "-D", a.directory, "-t", checks[1].pid, "-o", "second.log")
    assert second.code != 0, "it came without the action script, or second"
    await assert_runs(checks[1], a)
    assert await first.wait() == 0
    assert (await proxy.ended()).code == 0


async def test_other_users_at_the_sockets(a: Node, b: Node, node_dir: Path) -> None:
    """Their directories do not let them in; where one does, the kernel says who they are."""
    cache = await start_cache(b, "--listen", f"unix:{node_dir}/link")
    proxy = await start_proxy(a, cache.address)
    sockets = [path for node in (a, b) for path in node.directory.iterdir() if path.is_socket()]
    sockets.append(node_dir / "link")
    assert len(sockets) == 5
    for path in sockets:
        connecting = [sys.executable, "-S", "-c", CONNECT_AS, path, NOBODY]
        assert path.stat().st_mode & 0o777 == 0o600
        assert (await a.run(*connecting)).code == 13
        path.parent.chmod(0o711)
        path.chmod(0o666)
        ended = await a.run(*connecting)
        assert ended.code == 0, ended.output
        path.parent.chmod(0o700)
    await cache.wait_log("a process of another user connected to the link", uid=NOBODY)
    await cache.wait_log("a process of another user asked for images", uid=NOBODY)
    assert not proxy.dead
    assert await proxy.stop() == 128 + 15
    assert await cache.stop() == 0
