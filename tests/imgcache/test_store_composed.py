"""Images that are composed of pages that the store has, and what it gives back when no image has them any more."""

import pytest

from imgcache.image import StoredImage
from imgcache.store import ImageStore
from imgwire.errors import RemoteProtocolError
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
from tests.imgcache.store_input import header, receive
from tests.transform.synthetic import extent, pagemap
from transform.extents import PE_PARENT

pytestmark = pytest.mark.t1


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


async def sent(store: ImageStore, number: int, name: str, data: bytes, *, number_of_round: int) -> None:
    """A whole image that is not composed."""
    store.open(OpenImage(number, name, round=number_of_round))
    if data:
        await receive(store, header(data, number), data)
    store.end(EndImage(number, len(data)))


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
    with pytest.raises(RemoteProtocolError, match="at 0 are of a round before, and not kept"):
        store.readable(0, 0, 4097)
    assert store.readable(0, 4096, 4096).read(4096, 4096) == B


@pytest.mark.parametrize("together", [True, False])
async def test_what_a_round_before_has_is_patched_there(store: ImageStore, *, together: bool) -> None:
    """Where the page stands in another image, too, that one stays as it is."""
    store.begin_round(BeginRound(1))
    await composed(store, 0, "pages-1.img", A + B, (0, 0, 2), number_of_round=1)
    await composed(store, 1, "pages-2.img", b"", (0, 1, 1), number_of_round=1)
    for number, pages in enumerate((2, 1)):
        store.end(EndImage(number, pages * 4096))
    await sent(store, 2, "pagemap-7.img", pagemap(1, extent(0x1000, 2)), number_of_round=1)
    await sent(store, 3, "pagemap-8.img", pagemap(2, extent(0x1000, 1)), number_of_round=1)
    store.begin_round(BeginRound(2))
    await sent(store, 4, "pagemap-7.img", pagemap(1, extent(0x1000, 2, flags=PE_PARENT)), number_of_round=2)
    await sent(store, 5, "pagemap-8.img", pagemap(2, extent(0x1000, 1, flags=PE_PARENT)), number_of_round=2)
    await sent(store, 6, "inventory.img", b"", number_of_round=2)
    for offset, data in [(5000, b"new!")] if together else [(5000, b"ne"), (5002, b"w!"), (5001, b"e")]:
        store.patch(Patch(0, offset, data))
    assert store.readable(0, 4990, 20).read(4990, 20) == B[:10] + b"new!" + B[:6]
    store.finish(ImagesComplete(sum(len(one.images) for one in store.rounds), store.size))
    assert store.named("pages-1.img").read(0, 8192) == A + B[:904] + b"new!" + B[908:]
    assert store.named("pages-2.img").read(0, 4096) == B


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
    assert store.readable(0, 4096, 4096).read(4096, 4096) == B


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
