"""A source that opened a session and then breaks the protocol: its connection ends, other sessions do not notice."""

import json
import re
import struct
from pathlib import Path

import pytest
import trio

from imgwire.messages import Hello, OpenImage
from tests.imgwire.conversations import IDENTITY, control, hello_frame
from tests.integration.image_memory import held
from tests.nodes import Node, Nodes, Program, assert_runs, dump, restore, start_cache, start_proxy

pytestmark = pytest.mark.t2

MIB = 1 << 20
CONTROL, DATA = 2, 3
LENGTH = 0xFFFFFFFF
#: What the cache may grow by between two looks, such as by a log line: much less than the frame pretends to hold.
NOISE = 4 * MIB


def _header(kind: int) -> bytes:
    """The header of a frame of nearly 4 GiB, that would be the second of the session, and a part of its payload."""
    raw = LENGTH if kind == DATA else 0
    return struct.pack("<BBHIIIQQ", kind, 0, 0x5049, 0, LENGTH, raw, 2, 0) + b"x" * 65536


def _memory(cache: Program) -> int:
    """The most memory that the cache has had, in bytes, its images included."""
    status = Path(f"/proc/{cache.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024 + held(cache)


async def _hung_up(stream: trio.SocketStream) -> bool:
    """Whether the other side ends the connection."""
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        return True
    return True


@pytest.mark.parametrize("kind", [CONTROL, DATA], ids=["message", "image data"])
async def test_a_frame_of_four_gibibytes(nodes: Nodes, a: Node, b: Node, criu_latest: Path, kind: int) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_proxy(a, cache.address, "--session", "good", "--wait-restored")
    host, _, port = cache.address.rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(hello_frame(Hello(IDENTITY, "bad")) + control(1, OpenImage(0, "pages-1.img")))
        await cache.wait_log("session opened", session="bad")
        assert await stream.receive_some()
        before = _memory(cache)
        with trio.fail_after(20):
            await stream.send_all(_header(kind))
            assert await _hung_up(stream)
    told = await cache.wait_log("a connection does not follow the protocol")
    assert f"frame of {LENGTH} bytes: the limit is " in told["error"]
    assert _memory(cache) < before + NOISE
    status = (await b.run("imgcache", "status", "-D", b.directory, "--json")).stdout
    sessions = {one["name"]: one["source"] for one in map(json.loads, status.splitlines())}
    assert sessions == {"good": "attached", "bad": "away"}
    restoring = restore(b, criu_latest, directory=b.directory / "good")
    assert await dump(a, criu_latest, check.pid).wait() == 0
    assert await restoring.wait() == 0
    assert (await proxy.ended()).code == 0
    await assert_runs(check, b)
    assert await cache.stop() == 0
