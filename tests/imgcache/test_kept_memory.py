"""What a lazy restore of a checkpoint that is all here is given, and what it finds when it asks for pages."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcache.arena import Arena, pread_all
from imgcache.image import Round
from imgcache.kept_memory import KeptMemory, lazy_ranges
from imgcache.store import ImageStore
from imgwire.errors import RemoteProtocolError
from imgwire.messages import BeginRound, EndImage, ImagesComplete, OpenImage
from tests.imgcache.test_layers import (
    BASE,
    PAGES,
    PIDS,
    Model,
    TaskRound,
    a_round,
    arena,
    content,
    decoded,
    histories,
    memory_of,
    page,
    stored,
)
from tests.transform.synthetic import extent, mm, pagemap, vma
from transform.extents import PAGE_SIZE, PE_LAZY, PE_PRESENT

pytestmark = pytest.mark.t1

ANONYMOUS, PRIVATE, LOCKED, HUGETLB = 0x20, 0x02, 0x2000, 0x40000
#: Status and flags of mappings, and whether CRIU can let their pages follow.
MAPPINGS = {
    "anonymous": (0x201, ANONYMOUS | PRIVATE, True),
    "stack": (0x203, ANONYMOUS | PRIVATE | 0x100, True),
    "file": (0x41, PRIVATE, False),
    "shared": (0x101, ANONYMOUS | 0x01, False),
    "locked": (0x201, ANONYMOUS | PRIVATE | LOCKED, False),
    "huge": (0x201, ANONYMOUS | PRIVATE | HUGETLB, False),
    "vdso": (0x209, ANONYMOUS | PRIVATE, False),
    "vvar": (0x1201, ANONYMOUS | PRIVATE, False),
    "vsyscall": (0x204, ANONYMOUS | PRIVATE, False),
}

mappings = st.lists(st.tuples(st.integers(1, 6), st.sampled_from([*MAPPINGS, *["anonymous"] * 6])), min_size=1)


def an_mm(kinds: Sequence[tuple[int, str]]) -> tuple[bytes, set[int]]:
    """Mappings side by side from BASE on; addresses of the pages that may follow."""
    made, lazy, at = [], set(), BASE
    for pages, kind in kinds:
        status, flags, may_follow = MAPPINGS[kind]
        end = at + pages * PAGE_SIZE
        made.append(vma(at, end, status, flags=flags))
        lazy |= set(range(at, end, PAGE_SIZE)) if may_follow else set()
        at = end
    return mm(*made), lazy


def complete(place: Arena, rounds: Sequence[Round]) -> ImageStore:
    """A store that these rounds have come into."""
    store, number, size = ImageStore(place), 0, 0
    for one in rounds:
        store.begin_round(BeginRound(one.number))
        for name, image in one.images.items():
            store.open(OpenImage(number, name, round=one.number))
            for part in image.extents():
                store.numbered(number).add(part)
            store.end(EndImage(number, image.size))
            number, size = number + 1, size + image.size
    store.finish(ImagesComplete(number, size))
    return store


def kept(store: ImageStore) -> KeptMemory:
    made = KeptMemory(store)
    made.expect()
    return made


def without_source(task: TaskRound | None) -> TaskRound | None:
    return task and replace(task, pages=["gone" if kind == "source" else kind for kind in task.pages])


def read(memory: KeptMemory, pid: int, address: int, pages: int) -> bytes:
    return b"".join(pread_all(part.fd, part.length, part.offset) for part in memory.find(pid, address, pages))


@given(histories, st.tuples(mappings, mappings), st.integers(0, PAGES), st.integers(1, PAGES))
async def test_what_may_follow_is_left_out_and_found(
    history: list[tuple[TaskRound | None, ...]],
    mapped: tuple[list[tuple[int, str]], ...],
    first: int,
    asked: int,
) -> None:
    with arena() as place:
        model = Model(place)
        for number, tasks in enumerate(history, 1):
            model.play(tuple(map(without_source, tasks)), last=number == len(history))
        lazy = {}
        for pid, kinds in zip(PIDS, mapped, strict=True):
            data, lazy[pid] = an_mm(kinds)
            model.rounds[-1].images[f"mm-{pid}.img"] = stored(place, f"mm-{pid}.img", data)
        store = complete(place, model.rounds)
        before = {image.name: content(image) for image in store}
        memory = kept(store)
        served = {image.name: image for image in memory.images}
        for pid, expected in model.memory.items():
            found = memory_of(served, f"pagemap-{pid}.img")
            assert {at: data for at, (data, _) in found.items()} == {
                at: b"" if at in lazy[pid] else data for at, (data, _) in expected.items()
            }
            assert {flags for at, (_, flags) in found.items() if at in lazy[pid]} <= {PE_LAZY}
            assert {flags for at, (_, flags) in found.items() if at not in lazy[pid]} <= {PE_PRESENT}
            wanted = b""
            for at in range(BASE + first * PAGE_SIZE, BASE + (first + asked) * PAGE_SIZE, PAGE_SIZE):
                if at not in expected:
                    break
                wanted += expected[at][0]
            assert read(memory, pid, BASE + first * PAGE_SIZE, asked) == wanted
        follow = [at for pid, pages in model.memory.items() for at in pages if at in lazy[pid]]
        assert memory.total == memory.here == len(follow) * PAGE_SIZE
        assert {image.name: content(image) for image in store} == before, "the checkpoint itself is as it was"


async def test_what_lies_together_is_one_entry_wherever_it_came() -> None:
    """CRIU looks for each page from the first entry on."""
    with arena() as place:
        first = a_round(place, 1, pagemap_1=pagemap(1, extent(BASE, 4, 6)), pages_1=b"".join(map(page, range(4))))
        second = a_round(
            place,
            2,
            pagemap_1=pagemap(
                1, extent(BASE, 1, 1), extent(BASE + PAGE_SIZE, 2, 6), extent(BASE + 3 * PAGE_SIZE, 1, 1)
            ),
            pages_1=page(11) + page(12),
            mm_1=mm(vma(BASE, BASE + 4 * PAGE_SIZE)),
        )
        memory = kept(complete(place, [first, second]))
        _, (entry,) = decoded({"pagemap-1.img": memory.images.named("pagemap-1.img")}, "pagemap-1.img")
        assert (entry.vaddr, entry.compat_nr_pages, entry.flags) == (BASE, 4, PE_LAZY)
        assert read(memory, 1, BASE, 9) == page(0) + page(11) + page(12) + page(3)


async def test_shared_memory_is_served_as_it_is() -> None:
    with arena() as place:
        shared = {"pagemap_shmem_9": pagemap(2, extent(0, 1)), "pages_2": page(7)}
        own = {"pagemap_1": pagemap(1, extent(BASE, 1, 6)), "pages_1": page(1), "mm_1": mm(vma(BASE, BASE + PAGE_SIZE))}
        memory = kept(complete(place, [a_round(place, 0, **shared, **own)]))
        assert memory.total == PAGE_SIZE
        found = memory.images.find("pagemap-shmem-9.img")
        assert found is not None and content(found) == shared["pagemap_shmem_9"]
        assert content(memory.images.named("pages-2.img")) == page(7)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ({"pagemap_1": pagemap(1)}, r"pagemap-1\.img came without mm-1\.img"),
        ({"pagemap_1": pagemap(1), "mm_1": b"none"}, r"mm-1\.img"),
        (
            {"pagemap_1": pagemap(1, extent(BASE, 1, 2)), "mm_1": mm(vma(BASE, BASE + PAGE_SIZE))},
            r"the pages at 0x7f0000000000 did not come, and none were to follow",
        ),
    ],
)
async def test_images_that_do_not_fit(images: dict[str, bytes], reason: str) -> None:
    with arena() as place, pytest.raises(RemoteProtocolError, match=reason):
        kept(complete(place, [a_round(place, 0, **images)]))


async def test_a_page_that_nothing_lists() -> None:
    """Nobody would ever bring it: who asks must not wait for it."""
    with arena() as place:
        one = a_round(
            place, 0, pagemap_1=pagemap(1, extent(BASE, 1)), pages_1=page(1), mm_1=mm(vma(BASE, BASE + PAGE_SIZE))
        )
        memory = kept(complete(place, [one]))
        memory.ask(1, BASE)
        for pid, address in ((1, BASE + PAGE_SIZE), (2, BASE)):
            assert memory.find(pid, address, 1) == []
            with pytest.raises(RemoteProtocolError, match="where no page is"):
                memory.ask(pid, address)


def test_which_mappings_may_follow() -> None:
    """CRIU registers exactly these for faults: a page of another would never be asked for, and stay zeroes."""
    kinds = [(1, kind) for kind in MAPPINGS]
    data, lazy = an_mm(kinds)
    assert [start for start, _ in lazy_ranges("mm-1.img", data)] == sorted(lazy)
