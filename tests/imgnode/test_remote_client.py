"""The original `criu --remote` at the other end of a socket: what it says, where its images are, both variants.

What the fake client sends is compared with recorded bytes first, then it is what all other tests talk to.
"""

import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.lowlevel import FdStream

from imgnode import remote_client
from imgnode.remote_client import RemoteClient, put
from imgnode.unix import listening
from imgwire.errors import RemoteProtocolError
from imgwire.img_remote import Finish, Finished, ImageWanted, ImageWritten, SnapshotPushed, SnapshotsWanted
from tests.fake_remote_criu import CACHE, PROXY, RemoteCriu, entry, exactly, hung_up, identifier
from tests.playbook import random_bytes, virtual_time

pytestmark = pytest.mark.t1

VARIANTS = pytest.mark.parametrize("variant", ["pipe", "nopipe"])
PAGES = random_bytes(2_000_000)


def test_the_fake_speaks_the_recorded_bytes() -> None:
    assert entry("parent", "", 1024) == bytes.fromhex("0d000000 0a06") + b"parent" + bytes.fromhex("1200 188008")
    assert identifier("s1") == bytes.fromhex("04000000 0a02") + b"s1"
    assert identifier(".") == bytes.fromhex("03000000 0a01") + b"."
    assert entry("parent", "", 0) == bytes.fromhex("0c000000 0a06") + b"parent" + bytes.fromhex("1200 1800")
    assert entry("", "", 1) == bytes.fromhex("06000000 0a00 1200 1801")
    assert entry("", "", 0) == bytes.fromhex("06000000 0a00 1200 1800")
    assert entry("a.img", "s1", 1) == bytes.fromhex("0d000000 0a05") + b"a.img" + bytes.fromhex("1202") + b"s1\x18\x01"


class Meeting:
    """A socket, and a fake client that knows it."""

    def __init__(self, listener: trio.socket.SocketType, directory: Path, variant: str, side: str) -> None:
        self._listener = listener
        self.criu = RemoteCriu(side, directory, "s1", variant)

    async def client(self) -> RemoteClient:
        """The next connection."""
        sock, _ = await self._listener.accept()
        return RemoteClient(sock)


@asynccontextmanager
async def meeting(directory: Path, variant: str = "pipe", side: str = PROXY) -> AsyncIterator[Meeting]:
    async with listening(directory / side) as listener:
        yield Meeting(listener, directory, variant, side)


async def test_a_push_is_one_connection_without_an_answer(node_dir: Path) -> None:
    async with meeting(node_dir) as at:
        at.criu.push_now()
        client = await at.client()
        with client.sock:
            assert await client.request() == SnapshotPushed("s1")
            assert client.peer.pid == os.getpid()


@pytest.mark.parametrize(("side", "what"), [(PROXY, Finish.DUMP), (CACHE, Finish.RESTORE)])
async def test_the_end(node_dir: Path, side: str, what: Finish) -> None:
    async with meeting(node_dir, side=side) as at:
        at.criu.finish_now()
        client = await at.client()
        with client.sock:
            assert await client.request() == Finished(what)


async def test_pushes_and_ends_come_from_the_work_directory(node_dir: Path) -> None:
    elsewhere = node_dir / "elsewhere"
    elsewhere.mkdir()
    async with listening(node_dir / PROXY) as work, listening(elsewhere / PROXY) as images:
        criu = RemoteCriu(PROXY, elsewhere, "s1", work=node_dir)
        criu.push_now()
        criu.finish_now()
        criu.image_now("a.img", b"a")
        for listener, event in [(work, SnapshotPushed("s1")), (work, Finished(Finish.DUMP))]:
            with (await listener.accept())[0] as sock:
                assert await RemoteClient(sock).request() == event
        with (await images.accept())[0] as sock:
            client = RemoteClient(sock)
            assert await client.request() == ImageWritten("a.img", "s1")
            fd = await client.body()
            assert isinstance(fd, int)
            os.close(fd)


@pytest.mark.parametrize("ids", [[], ["s1"], ["a/b", "é", "x" * 200]])
async def test_the_list_of_ids(node_dir: Path, ids: list[str]) -> None:
    async with meeting(node_dir) as at, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve() -> None:
            client = await at.client()
            with client.sock:
                assert await client.request() == SnapshotsWanted()
                await client.say_snapshots(ids)

        assert await at.criu.ids() == ids


async def test_the_bytes_of_a_list(node_dir: Path) -> None:
    async with meeting(node_dir) as at:
        with await at.criu.ask(entry("parent", "", 0)) as sock:
            client = await at.client()
            with client.sock:
                await client.request()
                await client.say_snapshots(["s1", "s2"])
            wanted = bytes.fromhex("020000000800 04000000 0a02") + b"s1" + bytes.fromhex("04000000 0a02") + b"s2"
            assert await exactly(sock, len(wanted)) == wanted
            assert await hung_up(sock)


async def received(client: RemoteClient) -> bytes:
    """The image that it writes, wherever it is."""
    where = await client.body()
    if isinstance(where, int):
        async with FdStream(where) as pipe:
            return b"".join([part async for part in pipe])
    parts = [where]
    while part := await client.sock.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


@VARIANTS
@pytest.mark.parametrize("data", [b"", b"\0", b"x", PAGES], ids=["empty", "zero", "byte", "pages"])
async def test_an_image_that_is_written(node_dir: Path, variant: str, data: bytes) -> None:
    async with meeting(node_dir, variant) as at, trio.open_nursery() as nursery:
        nursery.start_soon(at.criu.image, "pages-1.img", data)
        client = await at.client()
        with client.sock:
            assert await client.request() == ImageWritten("pages-1.img", "s1")
            assert await received(client) == data


@pytest.mark.parametrize(("variant", "known"), [("pipe", "pipe"), ("nopipe", "nopipe"), ("pipe", ""), ("nopipe", "")])
async def test_an_image_that_is_read(node_dir: Path, variant: str, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the variant is known or must be found out."""
    monkeypatch.setattr(remote_client, "PIPE_GRACE", 0.1)
    async with meeting(node_dir, variant) as at, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve() -> None:
            client = await at.client()
            with client.sock:
                assert await client.request() == ImageWanted("pages-1.img", "s1")
                pipe = await client.target(known)
                assert (pipe is None) is (variant == "nopipe")
                for start in range(0, len(PAGES), 1 << 20):
                    await put(client, pipe, PAGES[start : start + (1 << 20)])
                if pipe is not None:
                    os.close(pipe)

        assert await at.criu.read("pages-1.img") == PAGES


async def test_an_image_that_is_not_there(node_dir: Path) -> None:
    async with meeting(node_dir) as at, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve() -> None:
            client = await at.client()
            with client.sock:
                await client.request()
                await client.say_missing()

        assert await at.criu.read("cgroup.img") is None


@VARIANTS
async def test_one_that_leaves_before_its_image_is_no_error_of_ours(node_dir: Path, variant: str) -> None:
    async with meeting(node_dir) as at:
        sock = at.criu.connect(entry("a.img", "s1", 0))
        client = await at.client()
        with client.sock:
            assert await client.request() == ImageWanted("a.img", "s1")
            sock.close()
            with pytest.raises(BrokenPipeError):
                pipe = await client.target(variant)
                assert pipe is None
                await put(client, pipe, PAGES)


async def test_one_that_reads_a_little_and_leaves(node_dir: Path) -> None:
    async with meeting(node_dir, "nopipe") as at, trio.open_nursery() as nursery:

        @nursery.start_soon
        async def serve() -> None:
            client = await at.client()
            with client.sock:
                await client.request()
                with pytest.raises(BrokenPipeError):
                    await put(client, await client.target("nopipe"), PAGES)

        stream = await at.criu.open_read("pages-1.img")
        assert stream is not None
        async with stream:
            assert await stream.receive_some(10) == PAGES[:10]


@virtual_time
async def test_one_that_says_nothing_is_given_up() -> None:
    near, far = trio.socket.socketpair()
    with near, far:
        begun = trio.current_time()
        with pytest.raises(RemoteProtocolError, match="has said nothing for 10 s"):
            await RemoteClient(near).request()
        assert trio.current_time() - begun == remote_client.REQUEST_TIMEOUT


@virtual_time
async def test_one_that_is_known_to_pass_a_pipe_has_time_for_it() -> None:
    """It may be stopped, or the machine busy: longer than one of which nothing is known is waited for."""
    near, far = trio.socket.socketpair()
    with near, far:
        client = RemoteClient(near)
        await far.send(entry("a.img", "s1", 0))
        await client.request()
        begun = trio.current_time()
        with pytest.raises(RemoteProtocolError, match="no pipe"):
            await client.target("pipe")
        assert trio.current_time() - begun == remote_client.REQUEST_TIMEOUT > remote_client.PIPE_GRACE


async def test_one_that_leaves_without_a_word(node_dir: Path) -> None:
    async with meeting(node_dir) as at:
        at.criu.connect(b"").close()
        client = await at.client()
        with client.sock:
            assert await client.request() is None


@pytest.mark.parametrize("size", range(1, len(entry("a.img", "s1", 1))))
async def test_a_header_that_is_cut(node_dir: Path, size: int) -> None:
    async with meeting(node_dir) as at:
        at.criu.connect(entry("a.img", "s1", 1)[:size]).close()
        client = await at.client()
        with client.sock, pytest.raises(RemoteProtocolError, match="in the middle of a request"):
            await client.request()


async def test_a_header_that_comes_byte_by_byte(node_dir: Path) -> None:
    async with meeting(node_dir) as at, trio.open_nursery() as nursery:
        with await at.criu.ask(b"") as sock:
            client = await at.client()

            @nursery.start_soon
            async def drip() -> None:
                for byte in entry("parent", "", 1024) + identifier("s1"):
                    await sock.send(bytes([byte]))
                    await trio.testing.wait_all_tasks_blocked()

            with client.sock:
                assert await client.request() == SnapshotPushed("s1")


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b"\xff\xff\xff\xff", "4294967295 bytes", id="length of 4 GiB"),
        pytest.param(b"\0\0\0\0", "0 bytes", id="length of nothing"),
        pytest.param(struct.pack("<I", 4) + b"\x0a\xff\xff\x01", "missing|middle", id="field longer than message"),
        pytest.param(entry("../x", "s1", 1), "image name", id="name with a path"),
        pytest.param(entry("a.img", "s1", 2), "open mode 2", id="mode"),
        pytest.param(entry("a.img", "s1", 1024), "APPEND", id="append to an image"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", "bytes: the limit", id="another protocol"),
    ],
)
async def test_garbage_is_named(node_dir: Path, raw: bytes, reason: str) -> None:
    async with meeting(node_dir) as at:
        sock = at.criu.connect(raw)
        client = await at.client()
        with sock, client.sock, pytest.raises(RemoteProtocolError, match=reason):
            await client.request()
