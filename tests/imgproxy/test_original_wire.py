"""The stream to an original image-cache: as recorded, decoded, refused by name, cut, acknowledged."""

import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from imgnode.addresses import parse_address
from imgnode.nursery import flat_nursery
from imgnode.pipes import Pipe, write_all
from imgproxy import original_wire
from imgproxy.compression import Compression
from imgproxy.dialer import Dialer
from imgproxy.one_way import OneWaySession
from imgproxy.original_wire import TOO_LARGE, CannotCarry, OriginalWire, unacknowledged
from imgproxy.sender import ImageSender
from imgproxy.source import LinkLost
from imgwire.errors import LocalProtocolError
from imgwire.img_remote_messages import encode_snapshots
from imgwire.img_remote_stream import ImageBegun, ImageBytes, RemoteStream
from imgwire.messages import BeginRound, DropRound, EndImage, ImagesComplete, Message, OpenImage, Patch
from tests.original_wire import FakeImageCache, ids, image, recording
from tests.playbook import random_bytes
from transform.chain import Chain

pytestmark = pytest.mark.t1

PAGES = random_bytes(3_000_001)


@asynccontextmanager
async def cache_and_wire(snapshot: str = "s1") -> AsyncIterator[tuple[FakeImageCache, OriginalWire]]:
    """An original cache, and a wire that is connected to it."""
    async with flat_nursery() as nursery:
        with trio.fail_after(20):
            cache = FakeImageCache()
            await nursery.start(cache.run)
            wire = await OriginalWire.connect(Dialer(parse_address(cache.address)), snapshot)
            try:
                yield cache, wire
            finally:
                wire.close()
        nursery.cancel_scope.cancel()


async def put(wire: OriginalWire, number: int, name: str, body: bytes) -> None:
    """One image, in two pieces."""
    await wire.send(OpenImage(number, name))
    half = len(body) // 2
    for part, offset in ((body[:half], 0), (body[half:], half)):
        if part:
            await wire.send_bytes(number, offset, part)
    await wire.send(EndImage(number, len(body)))


def decoded(raw: bytes) -> list[tuple[str, str, bytes]]:
    """The images of a stream, in order: name, snapshot, body."""
    found: list[tuple[str, str, bytes]] = []
    stream = RemoteStream()
    for event in stream.receive_data(raw):
        match event:
            case ImageBegun(name, snapshot, _):
                found.append((name, snapshot, b""))
            case ImageBytes(data):
                name, snapshot, body = found.pop()
                found.append((name, snapshot, body + data))
    stream.receive_eof()
    return found


async def finish(cache: FakeImageCache, wire: OriginalWire) -> None:
    """All of it, until the receiver has read it."""
    await wire.send(ImagesComplete(1, 1))
    await wire.finish()
    await cache.done.wait()
    assert cache.ended


async def feed(sender: ImageSender, name: str, body: bytes) -> None:
    """One image by a pipe, as CRIU gives it."""
    pipe = Pipe()
    try:
        async with flat_nursery() as nursery:

            async def fill() -> None:
                await write_all(pipe.writer, body)
                pipe.close_writer()

            nursery.start_soon(fill)
            await sender.send_from_pipe(name, pipe.reader)
    finally:
        pipe.close()


def memory_files() -> int:
    """Images that are held in memory."""
    found = 0
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found += str(fd.readlink()).startswith("/memfd:imgproxy")
    return found


async def test_the_recorded_dump_comes_out_as_it_was() -> None:
    raw = recording("stream-pipe-dump")
    async with cache_and_wire() as (cache, wire):
        for number, (name, _, body) in enumerate(decoded(raw)):
            await put(wire, number, name, body)
        await finish(cache, wire)
        assert cache.stream == raw


@pytest.mark.parametrize("name", ["stream-inc-2predumps-dump", "stream-orig-appends"])
async def test_recorded_rounds_keep_their_images_and_get_one_list(name: str) -> None:
    """What differs from the recording is the list: once, whole, not before something tells that this is a dump."""
    images = [one for one in decoded(recording(name)) if one[0] != "a.img"]
    snapshots = list(dict.fromkeys(snapshot for _, snapshot, _ in images))
    begun: list[str] = []
    async with cache_and_wire("unused") as (cache, wire):
        for number, (image_name, snapshot, body) in enumerate(images):
            if snapshot not in begun:
                begun.append(snapshot)
                await wire.send(BeginRound(len(begun), snapshot))
            await put(wire, number, image_name, body)
        await finish(cache, wire)
        assert decoded(cache.stream) == images
        assert cache.list == encode_snapshots(snapshots) and cache.order.count("parent") == 1
        at = cache.order.index("parent")
        assert all(one.startswith(("pages", "pagemap", "inventory")) for one in cache.order[:at])
        assert cache.order[at + 1 :] == [image_name for image_name, _, _ in images][at:]


async def test_a_dump_from_pipes_through_the_sender() -> None:
    images = {"fdinfo-2.img": b"f" * 56, "pages-1.img": PAGES, "inventory.img": b"i" * 49}
    async with cache_and_wire() as (cache, wire):
        sender = ImageSender(wire, Chain([]), Compression("off"))
        for name, body in images.items():
            await feed(sender, name, body)
        await wire.send(ImagesComplete(*sender.totals()))
        await wire.finish()
        await cache.done.wait()
        assert {name: body for (_, name), body in cache.images.items()} == images
        assert cache.order == ["parent", *images]


async def test_a_header_never_comes_in_pieces() -> None:
    """The fake cache takes it with two calls, as the original does; bodies end anywhere in a segment."""
    sizes = [*range(1, 40), *range(65_400, 65_500, 3), 1 << 20]
    async with cache_and_wire() as (cache, wire):
        for number, size in enumerate(sizes):
            await put(wire, number, f"a-{number}.img", PAGES[:size])
        await finish(cache, wire)
        assert [len(body) for body in cache.images.values()] == sizes


async def test_an_image_is_forgotten_when_it_is_sent() -> None:
    async with cache_and_wire() as (cache, wire):
        await wire.send(OpenImage(0, "a.img"))
        await wire.send(OpenImage(1, "b.img"))
        await put(wire, 2, "c.img", b"c")
        assert memory_files() == 2
        await wire.send_bytes(1, 0, b"b")
        await wire.send(EndImage(1, 1))
        assert memory_files() == 1
        wire.close()
        assert memory_files() == 0
        await cache.done.wait()
        assert not cache.ended


REFUSED: dict[str, tuple[list[Message | tuple[int, int]], str]] = {
    "too large": ([OpenImage(0, "pages-1.img"), (0, 1000)], "pages-1.img of s1, of 2 GiB or more: "),
    "empty": ([OpenImage(0, "pages-1.img"), EndImage(0, 0)], "pages-1.img of s1, which is empty: "),
    "twice": ([OpenImage(0, "a.img"), (0, 9), EndImage(0, 9), OpenImage(1, "a.img")], "a.img of s1, a second time: "),
    "same id": ([BeginRound(1, "d"), BeginRound(2, "d")], "a second round with -D d: "),
    "after a dump": (
        [BeginRound(1, "d"), OpenImage(0, "core-1.img"), (0, 9), EndImage(0, 9), BeginRound(2, "e")],
        "-D e after a dump: ",
    ),
    "taken back": (
        [BeginRound(1, "d"), OpenImage(0, "a.img"), DropRound(1)],
        "the end of d, which failed and is to be forgotten: ",
    ),
}


@pytest.mark.parametrize(("said", "line"), REFUSED.values(), ids=REFUSED)
async def test_what_the_wire_cannot_carry_is_refused_by_name(
    said: list[Message | tuple[int, int]], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(original_wire, "TOO_LARGE", 1000)
    assert TOO_LARGE == 1 << 31
    async with cache_and_wire() as (cache, wire):
        with pytest.raises(CannotCarry) as caught:
            for one in said:
                if isinstance(one, tuple):
                    await wire.send_bytes(one[0], 0, bytes(one[1]))
                else:
                    await wire.send(one)
        assert one is said[-1]
        expected = "the wire of the original image-cache cannot carry it; use an imgcache there, without --wire criu"
        assert str(caught.value) == (line + expected).replace("2 GiB", "0 GiB")
        wire.close()
        await cache.done.wait()
        assert not cache.ended, "it must not take this for a whole dump"


async def test_a_round_of_which_nothing_was_sent_can_be_taken_back() -> None:
    async with cache_and_wire() as (cache, wire):
        for number, snapshot in enumerate(["s1", "s2", "s2"]):
            await wire.send(BeginRound(number + 1, snapshot))
            if number == 1:
                await wire.send(DropRound(2))
            else:
                await put(wire, number, "inventory.img", b"i")
        await finish(cache, wire)
        assert cache.list == encode_snapshots(["s1", "s2"])


async def test_the_limit_holds_for_what_comes_by_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original_wire, "TOO_LARGE", 100_000)
    async with cache_and_wire() as (_, wire):
        with pytest.raises(CannotCarry):
            await feed(ImageSender(wire, Chain([]), Compression("off")), "pages-1.img", bytes(100_000))
        assert memory_files() == 1
    assert memory_files() == 0


async def test_what_only_the_link_has_is_our_mistake() -> None:
    async with cache_and_wire() as (_, wire):
        with pytest.raises(LocalProtocolError, match="Patch for an original"):
            await wire.send(Patch(0, 0, b"x"))
        with pytest.raises(LocalProtocolError, match="compressed bytes"):
            await wire.send_bytes(0, 0, b"x", raw_length=9)


@asynccontextmanager
async def deaf_peer() -> AsyncIterator[tuple[trio.socket.SocketType, OriginalWire]]:
    """A receiver that reads nothing by itself, of a few kilobytes."""
    listener = trio.socket.socket()
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await listener.bind(("127.0.0.1", 0))
        listener.listen(1)
        stream = trio.socket.socket()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        await stream.connect(listener.getsockname())
        peer, _ = await listener.accept()
        wire = OriginalWire(stream, "there", "s1")
        with peer:
            try:
                yield peer, wire
            finally:
                wire.close()


async def test_it_is_not_finished_before_everything_is_acknowledged() -> None:
    async with deaf_peer() as (peer, wire), trio.open_nursery() as nursery:
        await put(wire, 0, "a.img", bytes(100_000))
        finished = trio.Event()

        async def finish_it() -> None:
            await wire.finish()
            finished.set()

        nursery.start_soon(finish_it)
        with trio.move_on_after(0.1):
            await finished.wait()
        assert not finished.is_set() and unacknowledged(wire._sock)
        raw = bytearray()
        while data := await peer.recv(1 << 16):
            raw += data
        assert raw == ids(["s1"]) + image("a.img", "s1", bytes(100_000))
        with trio.fail_after(5):
            await finished.wait()


async def test_the_end_comes_only_when_all_the_rest_is_there() -> None:
    async with deaf_peer() as (peer, wire):
        await put(wire, 0, "a.img", bytes(100_000))
        with trio.move_on_after(0.1):
            await wire.finish()
        wire.close()
        with pytest.raises(ConnectionResetError):
            while await peer.recv(1 << 16):
                pass


@pytest.mark.parametrize("when", ["sending", "finishing"])
async def test_a_receiver_that_goes_is_noticed(when: str) -> None:
    async with deaf_peer() as (peer, wire):
        if when == "finishing":
            await put(wire, 0, "a.img", bytes(100_000))
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()
        with pytest.raises(LinkLost, match="there: the original image-cache is gone: "):
            if when == "sending":
                for number in range(3):
                    await put(wire, number, f"{number}.img", bytes(2_000_000))
            await wire.finish()


async def test_a_receiver_that_takes_nothing_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original_wire, "UNHEARD", 0.3)
    async with deaf_peer() as (_, wire):
        with trio.fail_after(20), pytest.raises(LinkLost, match="Connection timed out"):
            await put(wire, 0, "a.img", bytes(20_000_000))


async def test_a_directory_is_delivered(node_dir: Path) -> None:
    (node_dir / "pages-1.img").write_bytes(PAGES)
    (node_dir / "inventory.img").write_bytes(b"i")
    async with cache_and_wire("/images/s3") as (cache, wire):
        session = OneWaySession(wire, node_dir, node_dir, lambda: Chain([]), compress="auto")
        await session.send_directory(node_dir)
        await cache.done.wait()
        assert cache.ended
        assert cache.images == {("/images/s3", "pages-1.img"): PAGES, ("/images/s3", "inventory.img"): b"i"}


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=50), min_size=1, max_size=4), min_size=1, max_size=8), st.data()
)
def test_images_that_are_open_at_once(images: list[list[bytes]], data: st.DataObject) -> None:
    """Their pieces come in any order between them; on the wire each is whole."""
    order = data.draw(st.permutations([number for number, pieces in enumerate(images) for _ in pieces]))
    trio.run(_check_interleaved, images, order)


async def _check_interleaved(images: list[list[bytes]], order: list[int]) -> None:
    async with cache_and_wire() as (cache, wire):
        left = [list(pieces) for pieces in images]
        sizes = [0] * len(images)
        for number in range(len(images)):
            await wire.send(OpenImage(number, f"i-{number}.img"))
        for number in order:
            piece = left[number].pop(0)
            await wire.send_bytes(number, sizes[number], piece)
            sizes[number] += len(piece)
            if not left[number]:
                await wire.send(EndImage(number, sizes[number]))
        await finish(cache, wire)
        assert cache.images == {("s1", f"i-{number}.img"): b"".join(pieces) for number, pieces in enumerate(images)}
