"""The images of a session: as they come over a channel, and what a source may do wrong."""

import os
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import xxhash
import zstandard

from imgcache.arena import Arena, Extent, MemoryBudget, StoreFull
from imgcache.image import StoredImage
from imgcache.store import ImageStore
from imgnode.channel import Payload
from imgnode.nursery import flat_nursery
from imgwire.errors import RemoteProtocolError
from imgwire.frames import FLAG_ZSTD, MAX_DATA, FrameType, Header
from imgwire.link import Role
from imgwire.messages import (
    MAX_RUNS,
    RUN,
    ZEROES,
    BeginRound,
    Compose,
    DropRound,
    EndImage,
    ImagesComplete,
    OpenImage,
    Patch,
)
from tests.playbook import greeted, random_bytes, socket_pair, stream_pair
from tests.transform.synthetic import extent, pagemap

pytestmark = pytest.mark.t1


@pytest.fixture
async def store() -> AsyncIterator[ImageStore]:
    arena = Arena(MemoryBudget(None), None)
    yield ImageStore(arena)
    arena.close()


def header(data: bytes, image: int = 0, offset: int = 0, raw_length: int | None = None) -> Header:
    flags, raw = (0, len(data)) if raw_length is None else (FLAG_ZSTD, raw_length)
    return Header(FrameType.DATA, len(data), 1, flags, image, offset, raw)


async def receive(store: ImageStore, head: Header, data: bytes, *, splice: bool = True) -> None:
    """Give the store a frame as it comes from a connection; a shorter `data` ends the connection inside of it."""
    near, far = socket_pair() if splice else stream_pair()
    connection = greeted(Role.CACHE)
    connection.receive_data(head.encode())
    try:
        async with flat_nursery() as nursery:

            @nursery.start_soon
            async def send() -> None:
                await near.send_all(data)
                await near.aclose()

            await store.receive(Payload(far, connection, head))
    finally:
        await near.aclose()
        await far.aclose()


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


def opened(store: ImageStore, *, digest: bool = False) -> None:
    store.open(OpenImage(0, "a.img", digest=digest))


async def refused(store: ImageStore, head: Header, data: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        await receive(store, head, data)


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


# ---- rounds ----


async def put_round(store: ImageStore, number: int, snapshot: str = "", **images: bytes) -> None:
    """A round of such images and an inventory comes in; image numbers are a hundred for each round."""
    store.begin_round(BeginRound(number, snapshot))
    for image, (name, data) in enumerate([*images.items(), ("inventory", b"i")], number * 100):
        store.open(OpenImage(image, f"{name.replace('_', '-')}.img", round=number))
        if data:
            await receive(store, header(data, image), data)
        store.end(EndImage(image, len(data)))


async def test_images_are_told_apart_by_round(store: ImageStore) -> None:
    await put_round(store, 1, "s1", pages_1=b"first", only=b"once")
    await put_round(store, 5, "s2", pages_1=b"second")
    assert {image.name for image in store} == {"pages-1.img", "inventory.img"} and len(store) == 2
    assert store.named("pages-1.img").read(0, 6) == b"second" and store.find("only.img") is None
    assert store.numbered(100).read(0, 5) == b"first"
    store.finish(ImagesComplete(5, 17, "nopipe"))
    assert store.complete and store.variant == "nopipe" and len(store) == 2
    assert [(one.number, one.snapshot, len(one.images)) for one in store.rounds] == [(1, "s1", 3), (5, "s2", 2)]


async def test_rounds_of_distinct_ids_are_the_lineage(store: ImageStore) -> None:
    for number, snapshot in enumerate(["s1", "s2", "s3"], 1):
        await put_round(store, number, snapshot)
    store.finish(ImagesComplete(sum(len(one.images) for one in store.rounds), store.size))
    assert [one.snapshot for one in store.lineage] == ["s1", "s2", "s3"]
    assert store.lineage[1].images is store.rounds[1].images


async def test_an_id_used_twice_leaves_the_last_round_merged(store: ImageStore) -> None:
    await put_round(store, 1, "s1", pagemap_1=pagemap(1, extent(4096, 2)), pages_1=PAGES)
    await put_round(store, 2, "s2", pagemap_1=pagemap(1, extent(4096, 2, 1)), pages_1=b"")
    await put_round(store, 3, "s1", pagemap_1=pagemap(1, extent(8192, 1, 1)), pages_1=b"")
    store.finish(ImagesComplete(sum(len(one.images) for one in store.rounds), store.size))
    (only,) = store.lineage
    assert only.snapshot == "s1"
    assert only.images["pages-1.img"].read(0, 4096) == PAGES[4096:]


@pytest.mark.parametrize("number", [0, 2, 3])
async def test_rounds_only_go_up(store: ImageStore, number: int) -> None:
    await put_round(store, 3)
    with pytest.raises(RemoteProtocolError, match=f"round {number} after round 3"):
        store.begin_round(BeginRound(number))


async def test_the_only_round_need_not_begin(store: ImageStore) -> None:
    with pytest.raises(RemoteProtocolError, match=r"a\.img: is of round 1, which has not begun or is over"):
        store.open(OpenImage(0, "a.img", round=1))
    opened(store)
    with pytest.raises(RemoteProtocolError, match="round 0 after round 0"):
        store.begin_round(BeginRound(0))
    store.end(EndImage(0, 0))
    store.finish(ImagesComplete(1, 0))
    assert store.complete and len(store.rounds) == 1


async def test_images_of_another_round_are_refused(store: ImageStore) -> None:
    await put_round(store, 1)
    await put_round(store, 2)
    for number in (0, 1, 3):
        with pytest.raises(RemoteProtocolError, match=f"of round {number}, which has not begun or is over"):
            store.open(OpenImage(999, "a.img", round=number))
    with pytest.raises(RemoteProtocolError, match=r"a\.img \(number 100\): opened twice"):
        store.open(OpenImage(100, "a.img", round=2))
    with pytest.raises(RemoteProtocolError, match=r"inventory\.img \(number 999\): opened twice"):
        store.open(OpenImage(999, "inventory.img", round=2))


async def test_a_round_is_whole_before_the_next_begins(store: ImageStore) -> None:
    store.begin_round(BeginRound(1, "s1"))
    store.open(OpenImage(1, "a.img", round=1))
    with pytest.raises(RemoteProtocolError, match=r"round 2 begins with a\.img still open"):
        store.begin_round(BeginRound(2, "s2"))


async def test_a_dropped_round_gives_its_memory_back(store: ImageStore) -> None:
    await put_round(store, 1, "s1", pages_1=bytes(50_000))
    before = store.arena.memory_bytes
    await put_round(store, 2, "s2", pages_1=random_bytes(300_000), pages_2=random_bytes(MAX_DATA))
    (pages,) = store.named("pages-2.img").extents()
    assert store.arena.memory_bytes > before + MAX_DATA + 300_000 and os.pread(pages.fd, 8192, pages.offset).strip(
        b"\0"
    )
    store.drop_round(DropRound(2))
    assert store.arena.memory_bytes - before <= 3 * 4096  # less than a page of each image is left
    assert os.pread(pages.fd, 8192, pages.offset) == bytes(8192)
    assert {image.name for image in store} == {"pages-1.img", "inventory.img"} and store.size == 50_001
    store.finish(ImagesComplete(2, 50_001))
    assert store.named("pages-1.img").read(0, 50_000) == bytes(50_000)


async def test_images_of_a_dropped_round_are_forgotten(store: ImageStore) -> None:
    await put_round(store, 1, "s1")
    store.begin_round(BeginRound(2, "s2"))
    store.open(OpenImage(7, "a.img", round=2))
    await receive(store, header(b"abc", 7), b"abc")
    store.drop_round(DropRound(2))
    await refused(store, header(b"abc", 7, 3), b"abc", "image number 7 was never opened, or its round was dropped")
    with pytest.raises(RemoteProtocolError, match="or its round was dropped"):
        store.end(EndImage(7, 3))
    for number in (1, 2):
        with pytest.raises(RemoteProtocolError, match="has not begun or is over"):
            store.open(OpenImage(8, "b.img", round=number))
    with pytest.raises(RemoteProtocolError, match="round 2 after round 2"):
        store.begin_round(BeginRound(2, "s2"))
    await put_round(store, 3, "s3", a=b"again")
    with pytest.raises(RemoteProtocolError, match="declared complete with 4 images of 10 bytes; 3 of 7 bytes are here"):
        store.finish(ImagesComplete(4, 10))
    store.finish(ImagesComplete(3, 7))
    assert store.named("a.img").read(0, 5) == b"again"


async def test_only_the_newest_round_can_be_dropped(store: ImageStore) -> None:
    with pytest.raises(RemoteProtocolError, match="round 0 is to be dropped"):
        store.drop_round(DropRound(0))
    for number in (1, 2, 3):
        await put_round(store, number)
    store.drop_round(DropRound(3))
    for number in (1, 2, 3, 4):
        with pytest.raises(RemoteProtocolError, match=f"round {number} is to be dropped, and is not the one"):
            store.drop_round(DropRound(number))
    assert [one.number for one in store.rounds] == [1, 2]


async def test_after_the_end_no_round_begins_or_is_dropped(store: ImageStore) -> None:
    await put_round(store, 1, "s1")
    store.finish(ImagesComplete(1, 1))
    for late in (BeginRound(2, "s2"), DropRound(1), OpenImage(9, "a.img", round=1)):
        with pytest.raises(RemoteProtocolError, match="after the set was declared complete"):
            store.arrange(late)
    assert len(store.rounds) == 1


async def test_rounds_without_end_are_refused(store: ImageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcache.store.MAX_ROUNDS", 2)
    monkeypatch.setattr("imgcache.store.MAX_IMAGES", 2)
    for number in (1, 2):
        await put_round(store, number)
    with pytest.raises(RemoteProtocolError, match="more than 2 rounds"):
        store.begin_round(BeginRound(3))
    with pytest.raises(RemoteProtocolError, match="more than 2 images"):
        store.open(OpenImage(9, "a.img", round=2))
    store.drop_round(DropRound(2))
    await put_round(store, 3)


PAGES = random_bytes(8192)


@pytest.mark.parametrize("snapshot", ["", "s"])
async def test_the_rounds_are_merged_at_the_end(store: ImageStore, snapshot: str) -> None:
    await put_round(store, 1, snapshot, pagemap_1=pagemap(1, extent(4096, 2)), pages_1=PAGES)
    await put_round(store, 2, snapshot, pagemap_1=pagemap(1, extent(4096, 2, 1)), pages_1=b"")  # and is dropped
    store.drop_round(DropRound(2))
    await put_round(store, 3, snapshot, pagemap_1=pagemap(1, extent(8192, 1, 1)), pages_1=b"")
    assert store.named("pages-1.img").size == 0
    totals = sum(len(one.images) for one in store.rounds), store.size
    store.finish(ImagesComplete(*totals))
    pages, made = store.named("pages-1.img"), store.named("pagemap-1.img")
    assert pages.read(0, pages.size) == PAGES[4096:]
    assert made.read(0, made.size) == pagemap(1, extent(8192, 1))
    assert len(store) == 3 and store.rounds[-1].images["pages-1.img"].size == 0


async def test_a_reference_to_a_dropped_round_is_refused(store: ImageStore) -> None:
    await put_round(store, 1, pagemap_1=pagemap(1, extent(4096, 1)), pages_1=PAGES)
    await put_round(store, 2, pagemap_1=pagemap(1, extent(8192, 1)), pages_1=PAGES)
    store.drop_round(DropRound(2))
    await put_round(store, 3, pagemap_1=pagemap(1, extent(8192, 1, 1)))
    with pytest.raises(RemoteProtocolError, match=r"round 3: pagemap-1\.img: the page at 0x2000 .* in round 1, which"):
        store.finish(ImagesComplete(sum(len(one.images) for one in store.rounds), store.size))


async def test_a_pre_dump_that_failed_is_no_matter(store: ImageStore) -> None:
    await put_round(store, 1, "s1", pagemap_1=pagemap(1, extent(4096, 9)), pages_1=PAGES)  # of which two came
    await put_round(store, 2, "s2", pagemap_1=pagemap(1, extent(4096, 2)), pages_1=PAGES)
    await put_round(store, 3, "s3", pagemap_1=pagemap(1, extent(8192, 1, 1)), pages_1=b"")
    store.finish(ImagesComplete(sum(len(one.images) for one in store.rounds), store.size))
    assert store.named("pages-1.img").read(0, 4096) == PAGES[4096:]
    assert [one.snapshot for one in store.lineage] == ["s3"], "a client would look into the round that failed"


async def test_a_reference_to_a_pre_dump_that_failed_is_refused(store: ImageStore) -> None:
    await put_round(store, 1, "s1", pagemap_1=pagemap(1, extent(4096, 9)), pages_1=PAGES)
    await put_round(store, 2, "s2", pagemap_1=pagemap(1, extent(4096, 1, 1)), pages_1=b"")
    wanted = r"round s2: pagemap-1\.img: the page at 0x1000 .* in round s1, which"
    with pytest.raises(RemoteProtocolError, match=wanted):
        store.finish(ImagesComplete(sum(len(one.images) for one in store.rounds), store.size))


async def test_a_dump_that_did_not_end_well_is_refused(store: ImageStore) -> None:
    store.begin_round(BeginRound(1, "s1"))
    with pytest.raises(RemoteProtocolError, match=r"round s1: the dump has no inventory\.img"):
        store.finish(ImagesComplete(0, 0))
    assert not store.complete


def runs(*records: tuple[int, int, int]) -> bytes:
    return b"".join(RUN.pack(*record) for record in records)


async def composed(
    store: ImageStore, number: int, name: str, data: bytes, *records: tuple[int, int, int], number_of_round: int = 0
) -> StoredImage:
    """An image that brings `data` and consists of `records`."""
    store.open(OpenImage(number, name, round=number_of_round, composed=True))
    if data:
        await receive(store, header(data, number), data)
    if records:
        store.compose(Compose(number, runs(*records)))
    return store.numbered(number)


A, B, C, D = (bytes([number]) * 4096 for number in range(1, 5))


async def test_a_composed_image_is_what_it_refers_to(store: ImageStore) -> None:
    await composed(store, 0, "pages-1.img", A + B, (0, 1, 1), (ZEROES, 0, 2), (0, 0, 2))
    store.end(EndImage(0, 5 * 4096))
    await composed(store, 1, "pages-2.img", C, (0, 0, 1), (1, 0, 1))
    store.end(EndImage(1, 2 * 4096))
    store.finish(ImagesComplete(2, 7 * 4096))
    assert store.named("pages-1.img").read(0, 5 * 4096) == B + bytes(8192) + A + B
    assert store.named("pages-2.img").read(4000, 200) == A[:96] + C[:104]
    assert store.arena.memory_bytes == 3 * 4096


@pytest.mark.parametrize(
    "record",
    [(0, 0, 3), (0, 2, 1), (0, 2**60, 1), (5, 0, 1), (9, 0, 1), (7, 0, 1)],
    ids=["long", "beyond", "far", "unknown", "plain", "empty"],
)
async def test_a_reference_to_what_is_not_there(store: ImageStore, record: tuple[int, int, int]) -> None:
    store.open(OpenImage(9, "pages-9.img"))
    await receive(store, header(A, 9), A)
    await composed(store, 7, "pages-7.img", b"")
    await composed(store, 0, "pages-1.img", A + B)
    with pytest.raises(RemoteProtocolError):
        store.compose(Compose(0, runs(record)))


async def test_only_composed_images_are_composed(store: ImageStore) -> None:
    store.open(OpenImage(0, "pages-1.img"))
    with pytest.raises(RemoteProtocolError, match="was not opened so"):
        store.compose(Compose(0, runs((ZEROES, 0, 1))))
    await composed(store, 1, "pages-2.img", b"", (ZEROES, 0, 1))
    store.end(EndImage(1, 4096))
    with pytest.raises(RemoteProtocolError, match="bytes after its end"):
        store.compose(Compose(1, runs((ZEROES, 0, 1))))


async def test_more_than_a_process_can_have(store: ImageStore) -> None:
    store.open(OpenImage(0, "pages-1.img", composed=True))
    with pytest.raises(RemoteProtocolError, match="more bytes than a process can have"):
        for _ in range(2):
            store.compose(Compose(0, runs(*[(ZEROES, 0, 2**32 - 1)] * MAX_RUNS)))


async def test_what_is_superseded_is_given_back(store: ImageStore) -> None:
    """Round by round: only what the newest has is kept, and can be referred to."""
    store.begin_round(BeginRound(1))
    await composed(store, 0, "pages-1.img", A + B + C, (0, 0, 3), number_of_round=1)
    store.end(EndImage(0, 3 * 4096))
    store.begin_round(BeginRound(2))
    await composed(store, 1, "pages-1.img", D, (1, 0, 1), (0, 1, 2), number_of_round=2)
    store.end(EndImage(1, 3 * 4096))
    assert store.arena.memory_bytes == 4 * 4096
    store.begin_round(BeginRound(3))
    assert store.arena.memory_bytes == 3 * 4096, "A is gone"
    store.open(OpenImage(2, "pages-1.img", round=3, composed=True))
    store.compose(Compose(2, runs((0, 1, 1), (1, 0, 1))))
    with pytest.raises(RemoteProtocolError, match="refers to page 0 of"):
        store.compose(Compose(2, runs((0, 0, 2))))
    with pytest.raises(RemoteProtocolError, match="is of a round before, which is not kept"):
        store.readable(0)


async def test_a_dropped_round_leaves_what_was_there(store: ImageStore) -> None:
    store.begin_round(BeginRound(1))
    await composed(store, 0, "pages-1.img", A + B, (0, 0, 2), number_of_round=1)
    store.end(EndImage(0, 2 * 4096))
    store.begin_round(BeginRound(2))
    await composed(store, 1, "pages-1.img", C, (1, 0, 1), (0, 1, 1), number_of_round=2)
    store.end(EndImage(1, 2 * 4096))
    store.drop_round(DropRound(2))
    assert store.arena.memory_bytes == 2 * 4096
    store.begin_round(BeginRound(3))
    await composed(store, 2, "pages-1.img", b"", (0, 1, 1), (0, 0, 1), number_of_round=3)
    store.end(EndImage(2, 2 * 4096))
    store.open(OpenImage(3, "inventory.img", round=3))
    store.end(EndImage(3, 0))
    store.finish(ImagesComplete(3, 4 * 4096))
    assert store.named("pages-1.img").read(0, 8192) == B + A
    assert store.arena.memory_bytes == 2 * 4096


async def test_rounds_with_names_are_all_kept(store: ImageStore) -> None:
    """A restore may ask for each."""
    store.begin_round(BeginRound(1, "first"))
    await composed(store, 0, "pages-1.img", A + B, (0, 0, 2), number_of_round=1)
    store.end(EndImage(0, 2 * 4096))
    store.begin_round(BeginRound(2, "second"))
    await composed(store, 1, "pages-1.img", C, (1, 0, 1), number_of_round=2)
    store.end(EndImage(1, 4096))
    store.open(OpenImage(2, "inventory.img", round=2))
    store.end(EndImage(2, 0))
    store.finish(ImagesComplete(3, 3 * 4096))
    assert [one.images["pages-1.img"].read(0, 4096) for one in store.lineage] == [A, C]
    assert store.readable(0).read(4096, 4096) == B


async def test_what_is_read_is_given_back_unless_it_stands_elsewhere(store: ImageStore) -> None:
    await composed(store, 0, "pages-1.img", A + B + C, (0, 0, 3), (ZEROES, 0, 1))
    store.end(EndImage(0, 4 * 4096))
    await composed(store, 1, "pages-2.img", b"", (0, 1, 1))
    store.end(EndImage(1, 4096))
    store.finish(ImagesComplete(2, 5 * 4096))
    for piece in list(store.named("pages-1.img").extents()):
        store.release(piece)
    assert store.arena.memory_bytes == 4096
    assert store.named("pages-2.img").read(0, 4096) == B


async def test_a_patch_of_a_shared_page_changes_one_place(store: ImageStore) -> None:
    image = await composed(store, 0, "pages-1.img", A, (0, 0, 1), (0, 0, 1), (ZEROES, 0, 1))
    store.end(EndImage(0, 3 * 4096))
    store.patch(Patch(0, 4090, b"across the border"))
    store.patch(Patch(0, 3 * 4096 - 3, b"end"))
    expected = bytearray(A + A + bytes(4096))
    expected[4090:4107], expected[-3:] = b"across the border", b"end"
    assert image.read(0, 3 * 4096) == bytes(expected)
    with pytest.raises(RemoteProtocolError):
        store.patch(Patch(0, 3 * 4096 - 3, b"over"))
    await composed(store, 1, "pages-2.img", b"", (0, 0, 1))
    assert store.numbered(1).read(0, 4096) == A


async def test_references_of_pagemaps_keep_pages_too(store: ImageStore) -> None:
    """Plain rounds with references: what no later pagemap has is given back."""
    store.begin_round(BeginRound(1))
    first = {"pagemap-1.img": pagemap(1, extent(0x1000, 3)), "pages-1.img": A + B + C}
    second = {"pagemap-1.img": pagemap(1, extent(0x1000, 1, 1), extent(0x2000, 1)), "pages-1.img": D}
    third = {"pagemap-1.img": pagemap(1, extent(0x1000, 2, 1)), "pages-1.img": b"", "inventory.img": b"i"}
    number = 0
    for one, images in enumerate((first, second, third), 1):
        if one > 1:
            store.begin_round(BeginRound(one))
        for name, data in images.items():
            store.open(OpenImage(number, name, round=one))
            if data:
                await receive(store, header(data, number), data)
            store.end(EndImage(number, len(data)))
            number += 1
        if one == 2:
            held = store.arena.memory_bytes
    store.finish(ImagesComplete(number, store.size))
    assert store.named("pages-1.img").read(0, 8192) == A + D
    assert held == 5 * 4096
    assert store.arena.memory_bytes < 4 * 4096, "B and C are gone"
