"""The images of a session: as they come over a channel, and what a source may do wrong."""

import struct
from pathlib import Path

import pytest
import trio
import xxhash
import zstandard

from imgcache.arena import Arena, Extent, MemoryBudget, StoreFull
from imgcache.store import ImageStore
from imgwire.errors import RemoteProtocolError
from imgwire.frames import MAX_DATA
from imgwire.messages import (
    EndImage,
    ImagesComplete,
    OpenImage,
)
from tests.imgcache.store_input import header, opened, receive, refused
from tests.playbook import random_bytes

pytestmark = pytest.mark.t1


def zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=1).compress(data)


@pytest.mark.parametrize("how", ["spliced", "copied", "digested", "compressed"])
async def test_an_image_is_what_was_sent(store: ImageStore, how: str) -> None:
    parts = [random_bytes(MAX_DATA, 1), b"a" * 100, random_bytes(70_000, 3)]
    digest = xxhash.xxh3_128(b"".join(parts)).digest() if how == "digested" else None
    store.open(OpenImage(7, "pages-1.img", digest=digest is not None))
    offset = 0
    for part in parts:
        raw = zstd(part) if how == "compressed" else part
        head = header(raw, 7, offset, len(part) if how == "compressed" else None)
        await receive(store, head, raw, splice=how != "copied")
        offset += len(part)
    assert store.end(EndImage(7, offset, digest)).sealed
    store.finish(ImagesComplete(1, offset))
    assert store.complete and len(store) == 1 and store.size == offset
    assert store.named("pages-1.img").read(0, offset) == b"".join(parts)
    assert len(list(store.numbered(7).extents())) == 1  # coalesced: it lies together


async def test_images_that_come_at_once_are_kept_apart(store: ImageStore) -> None:
    contents = [random_bytes(50_000, number) for number in range(8)]
    for number in range(8):
        store.open(OpenImage(number, f"pages-{number}.img"))
    for offset in range(0, 50_000, 10_000):
        for number, content in enumerate(contents):
            part = content[offset : offset + 10_000]
            await receive(store, header(part, number, offset), part)
    for number, content in enumerate(contents):
        image = store.end(EndImage(number, 50_000))
        assert image.read(0, 50_000) == content
        assert len(list(image.extents())) == 5
        assert image.read(9_990, 20_020) == content[9_990:30_010]


async def test_an_empty_image_is_there(store: ImageStore) -> None:
    store.open(OpenImage(0, "pages-1.img"))
    store.end(EndImage(0, 0))
    store.finish(ImagesComplete(1, 0))
    image = store.find("pages-1.img")
    assert image is not None and image.size == 0 and list(image.extents()) == [] and image.read(0, 0) == b""
    assert store.find("pages-2.img") is None


@pytest.mark.parametrize("splice", [True, False])
@pytest.mark.parametrize("digest", [True, False])
async def test_a_frame_that_was_cut_counts_only_when_it_comes_again(
    store: ImageStore, splice: bool, digest: bool
) -> None:
    data = random_bytes(100_000)
    store.open(OpenImage(0, "core-1.img", digest=digest))
    for cut in (0, 1, 50_000, 99_999):
        with pytest.raises(trio.BrokenResourceError):
            await receive(store, header(data), data[:cut], splice=splice)
    assert store.arena.memory_bytes == 0
    await receive(store, header(data), data, splice=splice)
    store.end(EndImage(0, len(data), xxhash.xxh3_128(data).digest() if digest else None))
    assert store.named("core-1.img").read(0, len(data)) == data


# ---- what a source may do wrong ----


def lying(data: bytes, claimed: int) -> bytes:
    """A zstd frame of `data` whose header claims another size (RFC 8878: 8 bytes of size, no checksum)."""
    magic, body = b"\x28\xb5\x2f\xfd", zstandard.ZstdCompressor(write_content_size=True).compress(data)
    params = zstandard.get_frame_parameters(body)
    rest = body[zstandard.frame_header_size(body) :]
    assert params.content_size == len(data)
    return magic + b"\xe0" + struct.pack("<Q", claimed) + rest


async def test_an_honest_frame_made_like_that_passes(store: ImageStore) -> None:
    opened(store)
    raw = lying(b"a" * 5000, 5000)
    await receive(store, header(raw, raw_length=5000), raw)
    assert store.named("a.img").read(0, 5000) == b"a" * 5000


@pytest.mark.parametrize(
    ("raw", "announced", "reason"),
    [
        pytest.param(zstd(bytes(1 << 28)), MAX_DATA, "does not hold what its header says", id="bomb"),
        pytest.param(lying(bytes(1 << 24), 5000), 5000, "cannot be decompressed", id="bomb that lies"),
        pytest.param(lying(b"a" * 100, 5000), 5000, "zstd frame", id="less than it claims"),
        pytest.param(zstd(b"a" * 5000), 4999, "does not hold what its header says", id="another size"),
        pytest.param(zstd(random_bytes(5000))[:-1], 5000, "cannot be decompressed", id="cut"),
        pytest.param(zstd(random_bytes(5000))[:5], 5000, "zstd", id="header only"),
        pytest.param(b"garbage that is no frame", 5000, "zstd", id="garbage"),
        pytest.param(lying(b"", 1 << 62), MAX_DATA, "does not hold", id="claims four exabytes"),
    ],
)
async def test_a_hostile_zstd_frame_is_refused(store: ImageStore, raw: bytes, announced: int, reason: str) -> None:
    opened(store)
    await refused(store, header(raw, raw_length=announced), raw, reason)
    assert store.named("a.img").size == 0 and store.arena.memory_bytes == 0


async def test_frames_out_of_place_are_refused(store: ImageStore) -> None:
    opened(store)
    await refused(store, header(b"abc", image=9), b"abc", "number 9 was never opened")
    await refused(store, header(b"abc", offset=1), b"abc", "bytes for offset 1 at 0")
    store.end(EndImage(0, 0))
    await refused(store, header(b"abc"), b"abc", "bytes after its end")
    store.finish(ImagesComplete(1, 0))
    await refused(store, header(b"abc"), b"abc", "after the set was declared complete")


async def test_an_end_that_does_not_fit_is_refused(store: ImageStore) -> None:
    opened(store)
    await receive(store, header(b"abc"), b"abc")
    for size in (2, 4):
        with pytest.raises(RemoteProtocolError, match=f"a.img: {size} bytes were sent, 3 came"):
            store.end(EndImage(0, size))
    with pytest.raises(RemoteProtocolError, match="announced or sent, not both"):
        store.end(EndImage(0, 3, bytes(16)))
    with pytest.raises(RemoteProtocolError, match="never opened"):
        store.end(EndImage(1, 3))
    store.end(EndImage(0, 3))
    with pytest.raises(RemoteProtocolError, match="ended twice"):
        store.end(EndImage(0, 3))


async def test_bytes_that_were_changed_on_the_way_are_noticed(store: ImageStore) -> None:
    opened(store, digest=True)
    await receive(store, header(b"abc"), b"abc")
    with pytest.raises(RemoteProtocolError, match="announced or sent, not both"):
        store.end(EndImage(0, 3))
    with pytest.raises(RemoteProtocolError, match=r"a\.img: its bytes are not those that were sent"):
        store.end(EndImage(0, 3, xxhash.xxh3_128(b"abd").digest()))


async def test_a_set_that_is_not_whole_is_not_complete(store: ImageStore) -> None:
    opened(store)
    with pytest.raises(RemoteProtocolError, match=r"a\.img still open"):
        store.finish(ImagesComplete(1, 0))
    store.end(EndImage(0, 0))
    for images, size in ((2, 0), (1, 1), (0, 0)):
        with pytest.raises(RemoteProtocolError, match="declared complete with"):
            store.finish(ImagesComplete(images, size))
    assert not store.complete


async def test_an_image_comes_once(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(store)
    for again in (OpenImage(0, "b.img"), OpenImage(1, "a.img")):
        with pytest.raises(RemoteProtocolError, match="opened twice"):
            store.open(again)
    monkeypatch.setattr("imgcache.store.MAX_IMAGES", 1)
    with pytest.raises(RemoteProtocolError, match="more than 1 images"):
        store.open(OpenImage(1, "b.img"))


async def test_a_full_store_says_so_and_keeps_nothing_of_the_frame() -> None:
    arena = Arena(MemoryBudget(100), None)
    store = ImageStore(arena)
    opened(store)
    with pytest.raises(StoreFull):
        await receive(store, header(bytes(101)), bytes(101))
    await receive(store, header(bytes(100)), bytes(100))
    assert store.size == 100
    arena.close()


async def test_bytes_that_lie_in_a_file_are_adopted(store: ImageStore, tmp_path: Path) -> None:
    path = tmp_path / "archive"
    path.write_bytes(b"....abcdef")
    opened(store)
    with path.open("rb") as file:
        store.adopt(header(b"abcdef"), Extent(file.fileno(), 4, 6))
        assert store.named("a.img").read(2, 3) == b"cde"
        with pytest.raises(RemoteProtocolError, match="for offset 0 at 6"):
            store.adopt(header(b"abcdef"), Extent(file.fileno(), 4, 6))
