"""Putting a checkpoint together from frames in any order."""

import random
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
import trio
import xxhash

from criu_image_streamer.assembly import Assembly
from criu_image_streamer.descriptors import ShardSource
from imgcache.arena import Arena, Extent, MemoryBudget, pwrite_all
from imgwire.errors import RemoteProtocolError
from imgwire.frames import FLAG_ZSTD, FrameType, Header
from imgwire.messages import EndImage, ImagesComplete, OpenImage

pytestmark = pytest.mark.t1


class Given(ShardSource):
    """A shard whose next payload is at hand."""

    data = b""

    async def send_all(self, data: bytes | memoryview, *, more: bool = False) -> None:
        raise trio.ClosedResourceError

    async def receive_some(self, size: int) -> bytes:
        raise trio.ClosedResourceError

    async def aclose(self) -> None:
        raise trio.ClosedResourceError

    async def take(self, size: int, arena: Arena) -> Extent:
        await trio.lowlevel.checkpoint()
        assert size == len(self.data)
        extent = arena.reserve(size, None)
        pwrite_all(extent.fd, self.data, extent.offset)
        return extent


@pytest.fixture
async def arena() -> AsyncIterator[Arena]:
    made = Arena(MemoryBudget(None), None)
    yield made
    made.close()


async def put(assembly: Assembly, image: int, offset: int, data: bytes) -> None:
    source = Given()
    source.data = data
    await assembly.data(Header(FrameType.DATA, len(data), 1, 0, image, offset, len(data)), source)


async def test_any_order_gives_the_image(arena: Arena) -> None:
    data = random.Random(1).randbytes(100_000)
    cuts = [0, 1, 4096, 50_000, 50_001, 100_000]
    parts = list(pairwise(cuts))
    for seed in range(10):
        assembly = Assembly(arena, {})
        assembly.open(OpenImage(3, "core-1.img", True))
        for start, end in random.Random(seed).sample(parts, len(parts)):
            await put(assembly, 3, start, data[start:end])
        assembly.end(EndImage(3, len(data), xxhash.xxh3_128_digest(data)))
        assembly.complete(ImagesComplete(1, len(data)))
        assert assembly.store().named("core-1.img").read(0, len(data)) == data


@pytest.mark.parametrize(
    ("parts", "size", "why"),
    [
        ([(0, b"ab"), (3, b"d")], 4, "bytes for offset 3 at 2"),
        ([(0, b"abc"), (2, b"cd")], 4, "bytes for offset 2 at 3"),
        ([(0, b"ab"), (0, b"ab")], 4, "bytes for offset 0 at 2"),
        ([(0, b"abc")], 4, "4 bytes were sent, 3 came"),
        ([(0, b"abcde")], 4, "4 bytes were sent, 5 came"),
        ([], 4, "4 bytes were sent, 0 came"),
        ([(0, b"abcx")], 4, "digest differs"),
    ],
)
async def test_gaps_overlaps_and_wrong_bytes(arena: Arena, parts: list[tuple[int, bytes]], size: int, why: str) -> None:
    assembly = Assembly(arena, {})
    assembly.open(OpenImage(0, "core-1.img", True))
    for offset, data in parts:
        await put(assembly, 0, offset, data)
    assembly.end(EndImage(0, size, xxhash.xxh3_128_digest(b"abcd")))
    assembly.complete(ImagesComplete(1, size))
    with pytest.raises(RemoteProtocolError, match=why):
        assembly.store()


def opened(arena: Arena) -> Assembly:
    assembly = Assembly(arena, {})
    assembly.open(OpenImage(0, "core-1.img"))
    return assembly


async def test_what_shards_may_not_say(arena: Arena) -> None:
    assembly = opened(arena)
    assembly.open(OpenImage(0, "core-1.img"))  # another shard has some of it as well
    with pytest.raises(RemoteProtocolError, match=r"image 0 is core-2.img here and core-1.img elsewhere"):
        assembly.open(OpenImage(0, "core-2.img"))
    with pytest.raises(RemoteProtocolError, match="image number 9 was never opened"):
        await put(assembly, 9, 0, b"x")
    with pytest.raises(RemoteProtocolError, match="image number 9 was never opened"):
        assembly.end(EndImage(9, 0))
    with pytest.raises(RemoteProtocolError, match="its pages are compressed"):
        await assembly.data(Header(FrameType.DATA, 4, 1, FLAG_ZSTD, 0, 0, 40), Given())
    assembly.end(EndImage(0, 0))
    with pytest.raises(RemoteProtocolError, match=r"core-1.img: ended twice"):
        assembly.end(EndImage(0, 0))
    assembly.complete(ImagesComplete(1, 0))
    with pytest.raises(RemoteProtocolError, match="totals differ"):
        assembly.complete(ImagesComplete(2, 0))


async def test_an_image_without_its_end(arena: Arena) -> None:
    assembly = opened(arena)
    assembly.complete(ImagesComplete(1, 0))
    with pytest.raises(RemoteProtocolError, match=r"core-1.img: its end is missing"):
        assembly.store()


async def test_fewer_images_than_captured(arena: Arena) -> None:
    assembly = opened(arena)
    assembly.end(EndImage(0, 0))
    assembly.complete(ImagesComplete(2, 0))
    with pytest.raises(RemoteProtocolError, match="2 images of 0 bytes were captured, 1 of 0 bytes are here"):
        assembly.store()


async def test_two_images_of_one_name(arena: Arena) -> None:
    assembly = opened(arena)
    assembly.open(OpenImage(1, "core-1.img"))
    for number in (0, 1):
        assembly.end(EndImage(number, 0))
    assembly.complete(ImagesComplete(2, 0))
    with pytest.raises(RemoteProtocolError, match="opened twice"):
        assembly.store()


async def test_more_images_than_any_dump_has(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("criu_image_streamer.assembly.MAX_IMAGES", 1)
    with pytest.raises(RemoteProtocolError, match="more than 1 images"):
        opened(arena).open(OpenImage(1, "core-2.img"))


async def test_a_composed_image_is_of_another_reader(arena: Arena) -> None:
    """Its frames are not its bytes."""
    with pytest.raises(RemoteProtocolError, match="it is an archive for imgcache --from"):
        Assembly(arena, {}).open(OpenImage(0, "pages-1.img", composed=True))
