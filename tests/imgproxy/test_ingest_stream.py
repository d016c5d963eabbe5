"""`criu dump --stream` at the proxy, with a fake CRIU: what is taken, who is turned away."""

import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from imgnode.nursery import flat_nursery
from imgnode.unix import listening
from imgproxy.compression import Compression
from imgproxy.ingest.stream import StreamIngest
from imgproxy.sender import ImageSender
from imgwire.errors import RemoteProtocolError
from imgwire.names import LAST_IMAGE
from tests.fake_criu import FakeDump, connect_dump, request
from tests.playbook import MemoryOutgoing, random_bytes
from transform.chain import Chain

pytestmark = pytest.mark.t1

PAGES = random_bytes(2_000_000)


class Capture:
    """An ingest that waits for `criu dump` on a socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.out = MemoryOutgoing()
        self.changed = 0
        self.announced = {os.getpid()}
        self.anybody = False
        self.connected = trio.Event()  #: somebody is
        self.ingest = StreamIngest(ImageSender(self.out, Chain([]), Compression("off")), self._change)
        self.ended = trio.Event()

    def _change(self) -> None:
        self.changed += 1

    def _is_announced(self, pid: int) -> bool:
        self.connected.set()
        return self.anybody or pid in self.announced

    async def run(self, listener: trio.socket.SocketType) -> None:
        try:
            await self.ingest.accept(listener, self._is_announced)
        finally:
            self.ended.set()


@asynccontextmanager
async def capturing(directory: Path) -> AsyncIterator[Capture]:
    """What the ingest raises comes out here; it must have ended when the block does."""
    capture = Capture(directory / "s.sock")
    async with listening(capture.path) as listener, flat_nursery() as nursery:
        nursery.start_soon(capture.run, listener)
        yield capture


async def dump_all(criu: FakeDump, images: dict[str, bytes]) -> None:
    for name, data in images.items():
        await criu.image(name, data)
    criu.close()


async def test_images_are_taken_one_after_the_other(node_dir: Path) -> None:
    images = {"files.img": b"f" * 70_000, "pages-1.img": PAGES, "memfd.img": b"", LAST_IMAGE: b"i"}
    async with capturing(node_dir) as capture:
        await dump_all(await connect_dump(capture.path), images)
        await capture.ended.wait()
    assert capture.out.images == images
    assert capture.out.ended == list(images)
    assert capture.ingest.complete and capture.changed == 4
    assert capture.ingest.criu == os.getpid() and capture.ingest.started_at is not None


async def test_eight_images_at_once_end_in_any_order(node_dir: Path) -> None:
    names = [f"pages-{number}.img" for number in range(7)] + [LAST_IMAGE]
    async with capturing(node_dir) as capture:
        criu = await connect_dump(capture.path)
        pipes = [await criu.open(name) for name in names]
        async with trio.open_nursery() as nursery:
            for number, pipe in enumerate(pipes):
                nursery.start_soon(pipe.send_all, PAGES[number:])
        for pipe in reversed(pipes[1:]):
            await pipe.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert not capture.ingest.complete  # the last image has ended, but one that came before it has not
        await pipes[0].aclose()
        criu.close()
        await capture.ended.wait()
    assert capture.out.images == {name: PAGES[number:] for number, name in enumerate(names)}
    assert capture.out.ended[-1] == names[0]
    assert capture.ingest.complete


async def test_a_dump_that_fails_is_not_complete(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        await dump_all(await connect_dump(capture.path), {"files.img": b"f"})
        await capture.ended.wait()
    assert not capture.ingest.complete and capture.out.ended == ["files.img"]


async def test_a_silent_client_holds_nobody_up(node_dir: Path) -> None:
    """One that did not announce itself is refused at once, though it says nothing; the dump goes on meanwhile."""
    async with capturing(node_dir) as capture:
        capture.announced.clear()
        unannounced = await connect_dump(capture.path)
        assert await unannounced.hung_up()
        unannounced.close()
        capture.announced.add(os.getpid())
        criu = await connect_dump(capture.path)
        second = await connect_dump(capture.path)  # says nothing, too
        assert await second.hung_up()
        second.close()
        await dump_all(criu, {LAST_IMAGE: b"i"})
        await capture.ended.wait()
    assert capture.out.images == {LAST_IMAGE: b"i"}


async def test_a_client_of_another_user_is_refused(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        node_dir.chmod(0o755)
        capture.path.chmod(0o666)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            os.seteuid(65534)
            try:
                client.connect(str(capture.path))
            finally:
                os.seteuid(0)
            stranger = FakeDump(trio.socket.from_stdlib_socket(client))
            assert await stranger.hung_up()
            stranger.close()
        await dump_all(await connect_dump(capture.path), {LAST_IMAGE: b"i"})
        await capture.ended.wait()
    assert capture.ingest.complete


@pytest.mark.parametrize(
    ("raw", "fds", "reason"),
    [
        pytest.param(b"\xff\xff\xff\xff", 0, "a request of 4294967295 bytes", id="length of 4 GiB"),
        pytest.param(b"\x01\x00\x00\x00", 0, "a request of 1 bytes", id="length of one"),
        pytest.param(request("../x"), 0, "image name", id="name with a path"),
        pytest.param(request(".."), 0, "image name", id="parent"),
        pytest.param(request(""), 0, "image name", id="no name"),
        pytest.param(request(".hidden"), 0, "image name", id="hidden"),
        pytest.param(request(b"a\0"), 0, "image name", id="NUL"),
        pytest.param(request("x" * 300), 0, "longer than 255", id="long name"),
        pytest.param(request("a.img")[:7], 0, "middle of a request", id="end inside a request"),
        pytest.param(request("a.img"), 0, "middle of a request", id="end before the pipe"),
        pytest.param(request("a.img") + b"\0", 0, "no descriptor came for a.img", id="no descriptor"),
        pytest.param(request("a.img"), 1, "1 descriptors came where 0 was due", id="descriptor with the request"),
    ],
)
async def test_one_that_talks_nonsense_is_blamed(node_dir: Path, raw: bytes, fds: int, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        async with capturing(node_dir) as capture:
            criu = await connect_dump(capture.path)
            try:
                await criu.send(raw, *[criu.sock.fileno()] * fds)
            finally:
                criu.close()
            await capture.ended.wait()


async def test_two_descriptors_are_refused_and_closed(node_dir: Path) -> None:
    with pytest.raises(RemoteProtocolError, match="2 descriptors came where 1 was due"):
        async with capturing(node_dir) as capture:
            criu = await connect_dump(capture.path)
            await criu.send(request("a.img"))
            await criu.send(b"\0", criu.sock.fileno(), criu.sock.fileno())
            assert await criu.hung_up()
            criu.close()


async def test_an_image_that_comes_twice_is_refused(node_dir: Path) -> None:
    with pytest.raises(RemoteProtocolError, match=r"a\.img: sent twice"):
        async with capturing(node_dir) as capture:
            criu = await connect_dump(capture.path)
            await criu.image("a.img", b"one")
            await (await criu.open("a.img")).aclose()
            assert await criu.hung_up()
            criu.close()


async def test_what_is_no_pipe_is_an_error(node_dir: Path) -> None:
    with pytest.raises(OSError, match="descriptor"):
        async with capturing(node_dir) as capture:
            criu = await connect_dump(capture.path)
            await criu.send(request("a.img"))
            with (node_dir / "file").open("wb") as file:
                await criu.send(b"\0", file.fileno())
            assert await criu.hung_up()
            criu.close()


async def test_a_criu_that_is_killed_ends_it(node_dir: Path) -> None:
    command = [sys.executable, "-m", "tests.fake_criu", "dump", str(node_dir / "s.sock"), "files.img", "pages-1.img"]
    async with capturing(node_dir) as capture:
        capture.anybody = True
        dump = await trio.lowlevel.open_process(command, stdout=-1)
        assert dump.stdout is not None
        assert await dump.stdout.receive_some(4) == b"half"
        await capture.connected.wait()  # it has written into pipes that may still wait to be taken
        assert capture.ingest.criu == dump.pid
        dump.kill()
        await dump.wait()
        await dump.stdout.aclose()
        await capture.ended.wait()
    assert not capture.ingest.complete
    assert capture.out.images == {"files.img": b"half", "pages-1.img": b"half"}
