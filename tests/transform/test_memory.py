"""Reading and writing by virtual address."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transform.synthetic import BytesStore, extent, image, mm, pagemap, vma
from transform.errors import AddressError, ImageError
from transform.extents import PE_PARENT, Pagemap
from transform.images.proto import files_pb2, memory_pb2, task_pb2
from transform.memory import EarlierRound, Memory

pytestmark = pytest.mark.t0
PAGE = 4096
PID = 5
NAME = f"pagemap-{PID}.img"
PAGES = bytes(range(256)) * 16 + b"second".ljust(PAGE, b".") + b"third".ljust(PAGE, b".")


def memory(store: BytesStore, vmas: list[memory_pb2.Vma], *extents: memory_pb2.PagemapEntry, **more: bytes) -> Memory:
    images = {f"{name.replace('_', '-')}.img": data for name, data in more.items()}
    images |= {f"mm-{PID}.img": mm(*vmas), f"pagemap-{PID}.img": pagemap(1, *extents)}
    return Memory(PID, images, store)


@pytest.fixture
def store() -> BytesStore:
    return BytesStore(pages_1=PAGES)


@pytest.fixture
def three_pages(store: BytesStore) -> Memory:
    """0x1000 and 0x2000 in two extents, a hole at 0x3000, 0x4000 in another mapping; 0x5000 is not mapped."""
    vmas = [vma(0x4000, 0x5000), vma(0x1000, 0x4000)]
    return memory(store, vmas, extent(0x1000, 1), extent(0x2000, 1), extent(0x4000, 1))


def test_reads_go_over_extents_holes_and_mappings(three_pages: Memory) -> None:
    assert three_pages.read(0x1000, 4 * PAGE) == PAGES[: 2 * PAGE] + bytes(PAGE) + PAGES[2 * PAGE :]
    assert three_pages.read(0x1FFF, 2) == b"\xffs"
    assert three_pages.read(0x2FFF, 2) == b".\0"
    assert three_pages.read(0x3FFE, 4) == b"\0\0th"
    assert three_pages.read(0x1000, 0) == b""


@given(st.integers(0x1000, 0x5000), st.integers(0, 0x4000))
def test_any_range_is_a_part_of_the_whole(start: int, length: int) -> None:
    vmas = [vma(0x1000, 0x4000), vma(0x4000, 0x5000)]
    view = memory(BytesStore(pages_1=PAGES), vmas, extent(0x1000, 2), extent(0x4000, 1))
    if start + length > 0x5000:
        with pytest.raises(AddressError, match=r"at 0x5000: not mapped"):
            view.read(start, length)
        return
    whole = view.read(0x1000, 4 * PAGE)
    assert view.read(start, length) == whole[start - 0x1000 : start - 0x1000 + length]


def test_writes_go_over_extents(three_pages: Memory, store: BytesStore) -> None:
    three_pages.write(0x1FFE, b"abcd")
    assert store.images["pages-1.img"][PAGE - 2 : PAGE + 4] == b"abcdco"


@pytest.mark.parametrize("address", [0x2FFF, 0x3000, 0x4FFF, 0xFFF])
def test_a_write_that_cannot_be_whole_changes_nothing(three_pages: Memory, store: BytesStore, address: int) -> None:
    with pytest.raises(AddressError):
        three_pages.write(address, b"ab")
    assert store.images["pages-1.img"] == PAGES


def test_a_hole_says_why_it_cannot_be_written(three_pages: Memory) -> None:
    with pytest.raises(AddressError, match=r"memory of task 5 at 0x3000: the task never touched this page"):
        three_pages.write(0x2FFF, b"ab")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (extent(0x1000, 1, flags=1), "in the parent"),
        (extent(0x1000, 1, flags=2), "lazy"),
        (memory_pb2.PagemapEntry(vaddr=0x1000, compat_nr_pages=1, in_parent=True), "in the parent"),
    ],
)
def test_pages_that_are_elsewhere(store: BytesStore, entry: memory_pb2.PagemapEntry, reason: str) -> None:
    view = memory(store, [vma(0x1000, 0x3000)], entry, extent(0x2000, 1))
    assert view.read(0x2000, 4) == PAGES[:4], "pages that are elsewhere take no place in the image"
    with pytest.raises(AddressError, match=reason):
        view.read(0x1000, 1)


def rounds(*pagemaps: bytes) -> list[EarlierRound]:
    """Each with pages of its own, the latest first."""
    letters = [bytes([letter]) * PAGE * 4 for letter in b"xyz"]
    return [
        EarlierRound({NAME: Pagemap(NAME, data)}, BytesStore(pages_1=pages))
        for data, pages in zip(pagemaps, letters, strict=False)
    ]


@pytest.fixture
def of_two_rounds() -> list[EarlierRound]:
    """The latest has 0x2000, and leaves 0x1000 to the one before it."""
    first = pagemap(1, extent(0x1000, 1), extent(0x2000, 2))
    return rounds(pagemap(1, extent(0x1000, 1, flags=PE_PARENT), extent(0x2000, 1)), first)


def test_pages_of_rounds_before_the_dump(store: BytesStore, of_two_rounds: list[EarlierRound]) -> None:
    images = {f"mm-{PID}.img": mm(vma(0x1000, 0x5000))}
    images[f"pagemap-{PID}.img"] = pagemap(1, extent(0x1000, 2, flags=PE_PARENT), extent(0x3000, 1))
    view = Memory(PID, images, store, of_two_rounds)
    assert view.read(0x1FFF, 2) == b"yx"
    assert view.read(0x1000, 4 * PAGE) == b"y" * PAGE + b"x" * PAGE + PAGES[:PAGE] + bytes(PAGE)
    view.write(0x1FFE, b"abcd")
    assert view.read(0x1FFD, 6) == b"yabcdx"
    assert [one.store.read("pages-1.img", 0, 3) for one in of_two_rounds] == [b"cdx", b"yyy"]
    assert store.images["pages-1.img"] == PAGES


class Counting(BytesStore):
    """Says how many questions it was asked, and how many orders it was given."""

    asked = ordered = 0

    def read_all(self, places: Sequence[tuple[str, int, int]]) -> list[bytes]:
        self.asked += 1
        return super().read_all(places)

    def patch_all(self, patches: Sequence[tuple[str, int, bytes]]) -> None:
        self.ordered += 1
        super().patch_all(patches)


def test_what_goes_together_asks_each_store_once(of_two_rounds: list[EarlierRound]) -> None:
    stores = [
        Counting(pages_1=PAGES),
        *(Counting(**{"pages_1": one.store.read("pages-1.img", 0, 2 * PAGE)}) for one in of_two_rounds),
    ]
    images = {f"mm-{PID}.img": mm(vma(0x1000, 0x5000))}
    images[NAME] = pagemap(1, extent(0x1000, 2, flags=PE_PARENT), extent(0x3000, 1))
    before = [EarlierRound(one.pagemaps, store) for one, store in zip(of_two_rounds, stores[1:], strict=True)]
    view = Memory(PID, images, stores[0], before)
    ranges = [(0x2FFF, 2), (0x1FFF, 2), (0x3000, 1), (0x4000, 2), (0x1000, 0)]
    assert view.read_all(ranges) == [view.read(*one) for one in ranges] == [b"x\0", b"yx", b"\0", b"\0\0", b""]
    asked = [store.asked for store in stores]
    view.read_all(ranges)
    assert [after - now for after, now in zip((store.asked for store in stores), asked, strict=True)] == [1, 1, 1]
    with pytest.raises(AddressError, match="never touched"):
        view.write_all([(0x1000, b"a"), (0x4000, b"b")])
    assert [store.ordered for store in stores] == [0, 0, 0], "all or none"
    view.write_all([(0x1FFF, b"ab"), (0x3001, b"c"), (0x2FFF, b"de")])
    assert [store.ordered for store in stores] == [1, 1, 1]
    assert view.read(0x1FFF, 2) + view.read(0x2FFF, 3) == b"abdec"


def test_a_pagemap_that_has_been_read_is_taken_if_it_is_still_that(store: BytesStore) -> None:
    images = {f"mm-{PID}.img": mm(vma(0x1000, 0x5000)), NAME: pagemap(1, extent(0x1000, 1))}
    known = {NAME: Pagemap(NAME, images[NAME])}
    assert Memory(PID, images, store, pagemaps=known).pagemap is known[NAME]
    images[NAME] = pagemap(1, extent(0x2000, 1))
    assert Memory(PID, images, store, pagemaps=known).read(0x2000, 4) == PAGES[:4]


@pytest.mark.parametrize("before", [0, 1])
def test_a_page_that_no_round_has(store: BytesStore, of_two_rounds: list[EarlierRound], before: int) -> None:
    images = {f"mm-{PID}.img": mm(vma(0x1000, 0x5000))}
    images[f"pagemap-{PID}.img"] = pagemap(1, extent(0x1000, 3, flags=PE_PARENT))
    view = Memory(PID, images, store, of_two_rounds[:before])
    with pytest.raises(AddressError, match="at 0x1000: the page is in the parent of this dump, and not to be found"):
        view.read(0x1000, 1)
    with pytest.raises(AddressError, match="at 0x3000"):
        Memory(PID, images, store, of_two_rounds).read(0x3000, 1)


def test_extents_of_older_and_newer_criu(store: BytesStore) -> None:
    old = memory_pb2.PagemapEntry(vaddr=0x1000, compat_nr_pages=1)
    new = extent(0x2000, 0, nr_pages=2)
    view = memory(store, [vma(0x1000, 0x4000)], old, new)
    assert view.read(0x1000, 3 * PAGE) == PAGES


@pytest.mark.parametrize("status", [1 << 2, 1 << 12, 1 << 7, 1 << 10 | 1 << 8])
def test_memory_that_no_image_of_the_task_has(store: BytesStore, status: int) -> None:
    with pytest.raises(AddressError, match="not in the task's dump"):
        memory(store, [vma(0x1000, 0x2000, status)]).read(0x1000, 1)


def test_an_unmodified_page_of_a_file_is_not_zeros(store: BytesStore) -> None:
    with pytest.raises(AddressError, match="mapped file"):
        memory(store, [vma(0x1000, 0x2000, 1 << 6)]).read(0x1000, 1)


def test_shared_memory_has_a_pagemap_of_its_own(store: BytesStore) -> None:
    shared = vma(0x9000, 0xB000, 1 << 8, shmid=7, pgoff=PAGE)
    view = memory(store, [shared], pagemap_shmem_7=pagemap(1, extent(0, 2)))
    assert view.read(0x9000, PAGE + 4) == PAGES[PAGE : 2 * PAGE] + bytes(4)
    untouched = memory(store, [shared])
    assert untouched.read(0x9000, 4) == bytes(4)


def test_shared_memory_that_criu_sees_as_a_memfd(store: BytesStore) -> None:
    memfd = files_pb2.MemfdFile(id=2, flags=0, pos=0, inode_id=1)
    inode = memory_pb2.MemfdInode(name=b"/dev/zero", uid=0, gid=0, size=PAGE, shmid=25, seals=0, inode_id=1)
    images = {
        "files": image("files", files_pb2.File(type=task_pb2.MEMFD, id=2, memfd=memfd)),
        "memfd": image("memfd", inode),
        "pagemap_shmem_25": pagemap(1, extent(0, 1)),
    }
    mapping = vma(0x9000, 0xA000, 1 << 14 | 1 << 7, shmid=2)
    assert memory(store, [mapping], **images).read(0x9000, 4) == PAGES[:4]
    del images["memfd"]
    with pytest.raises(ImageError, match=r"memfd\.img"):
        memory(store, [mapping], **images).read(0x9000, 4)


def test_the_page_size_is_in_the_auxiliary_vector() -> None:
    images = {
        "mm-5.img": mm(vma(0x10000, 0x30000), auxv=(3, 64, 6, 65536, 0, 0)),
        "pagemap-5.img": pagemap(1, extent(0x20000, 1)),
    }
    view = Memory(5, images, BytesStore(pages_1=b"x" * 65536))
    assert view.page_size == 65536
    assert view.read(0x2FFFF, 1) == b"x"
    images["mm-5.img"] = mm(auxv=(6, 5000))
    with pytest.raises(ImageError, match="page size of 5000"):
        Memory(5, images, BytesStore())


def test_images_that_are_not_there() -> None:
    with pytest.raises(AddressError, match=r"no mm-6\.img"):
        Memory(6, {}, BytesStore())
    with pytest.raises(ImageError, match="0 entries"):
        Memory(6, {"mm-6.img": image("mm"), "pagemap-6.img": pagemap(1)}, BytesStore())
