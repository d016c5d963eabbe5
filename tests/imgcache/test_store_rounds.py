"""Rounds in the store: told apart, dropped, merged at the end."""

import os

import pytest

from imgcache.store import ImageStore
from imgwire.errors import RemoteProtocolError
from imgwire.frames import MAX_DATA
from imgwire.messages import (
    BeginRound,
    DropRound,
    EndImage,
    ImagesComplete,
    OpenImage,
)
from tests.imgcache.store_input import header, opened, put_round, receive, refused
from tests.playbook import random_bytes
from tests.transform.synthetic import extent, pagemap

pytestmark = pytest.mark.t1


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
