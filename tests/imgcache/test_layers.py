"""Rounds merged into one checkpoint: against a model of memory, against a recording, and what may be wrong in them."""

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcache.arena import Arena, Extent, MemoryBudget, pwrite_all
from imgcache.image import Round, StoredImage
from imgcache.layers import Layers
from imgcache.store import ImageStore
from imgwire.errors import RemoteProtocolError
from imgwire.img_remote_stream import RemoteStream
from imgwire.messages import BeginRound, EndImage, ImagesComplete, OpenImage
from tests.imgwire.test_img_remote_stream import collected, recording
from tests.transform.synthetic import extent, image, pagemap
from transform.extents import PAGE_SIZE, PE_LAZY, PE_PARENT, PE_PRESENT
from transform.images.codec import decode
from transform.images.proto import memory_pb2

pytestmark = pytest.mark.t1

BASE = 0x7F0000000000
PAGES = 24  #: in the address space of a model's task
PIDS = (11, 12)
FLAGS = {"fresh": PE_PRESENT, "fresh lazy": PE_PRESENT | PE_LAZY, "keep": PE_PARENT, "source": PE_LAZY}


def arena() -> "closing[Arena]":
    return closing(Arena(MemoryBudget(None), None))


@pytest.fixture
async def place() -> AsyncIterator[Arena]:
    with arena() as made:
        yield made


def stored(arena: Arena, name: str, data: bytes, chunk: int = 1 << 20) -> StoredImage:
    """An image in the store, in pieces that lie apart."""
    made = StoredImage(name)
    for start in range(0, len(data), chunk):
        part = data[start : start + chunk]
        place = arena.reserve(len(part), None)
        pwrite_all(place.fd, part, place.offset)
        made.add(place)
    made.seal(len(data), None)
    return made


def a_round(arena: Arena, number: int, **images: bytes) -> Round:
    """A round of such images, and the inventory."""
    named = {f"{name.replace('_', '-')}.img": data for name, data in images.items()} | {"inventory.img": b"inventory"}
    return Round(number, f"s{number}", {name: stored(arena, name, data) for name, data in named.items()})


def merge(arena: Arena, *rounds: Round) -> dict[str, StoredImage]:
    layers = Layers()
    for one in rounds:
        layers.add(one)
    return layers.checkpoint(arena)


def content(made: StoredImage) -> bytes:
    return made.read(0, made.size)


def page(number: int) -> bytes:
    return number.to_bytes(8, "little") * (PAGE_SIZE // 8)


# ---- the model ----

Memory = dict[int, tuple[bytes, int]]
"""What is at each address: the page, and its flags; no bytes where the page is at the source still."""


@dataclass(frozen=True)
class TaskRound:
    """What one round does to the pages of a task, and how its pagemap says so."""

    pages: list[str]  #: for each page: gone, or one of FLAGS
    cuts: list[bool]  #: where an extent ends although it could go on
    form: str  #: of the pagemap: wide (CRIU 4.2), narrow, old (before 3.0)
    chunk: int  #: bytes of the pages image that lie together

    def kinds(self, before: Memory, *, last: bool) -> list[str]:
        """What is possible of `pages`: what was not there cannot be kept, before the last round all is sent."""
        kinds = list(self.pages)
        for number, kind in enumerate(kinds):
            at = BASE + number * PAGE_SIZE
            if (kind == "keep" and at not in before) or (kind == "source" and (not last or self.form == "old")):
                kinds[number] = "gone"
        return kinds

    def entries(self, kinds: list[str]) -> Iterator[memory_pb2.PagemapEntry]:
        numbered, part = [], 0
        for number, kind in enumerate(kinds):
            part += self.cuts[number]
            numbered.append((part, kind, number))
        for (_, kind), members in groupby(numbered, lambda one: one[:2]):
            numbers = [number for _, _, number in members]
            if kind != "gone":
                yield self._entry(BASE + numbers[0] * PAGE_SIZE, len(numbers), kind)

    def _entry(self, start: int, count: int, kind: str) -> memory_pb2.PagemapEntry:
        if self.form == "old":
            return extent(start, count, None, in_parent=True if kind == "keep" else None)
        return extent(start, count, FLAGS[kind], nr_pages=count if self.form == "wide" else None)


task_rounds = st.builds(
    TaskRound,
    pages=st.lists(st.sampled_from(["gone", "keep", "keep", "source", *FLAGS]), min_size=PAGES, max_size=PAGES),
    cuts=st.lists(st.booleans(), min_size=PAGES, max_size=PAGES),
    form=st.sampled_from(["wide", "narrow", "old"]),
    chunk=st.integers(500, 5 * PAGE_SIZE),
)
histories = st.lists(st.tuples(*[st.none() | task_rounds for _ in PIDS]), min_size=1, max_size=4)


@dataclass
class Model:
    """Plays a history: writes the images of its rounds, and knows what memory is at the end."""

    arena: Arena
    rounds: list[Round] = field(default_factory=list)
    memory: dict[int, Memory] = field(default_factory=dict)
    wide: dict[int, bool] = field(default_factory=dict)
    contents: int = 0

    def play(self, tasks: tuple[TaskRound | None, ...], *, last: bool) -> None:
        one = a_round(self.arena, len(self.rounds) + 1, files=b"files %d" % len(self.rounds))
        memory, self.memory = self.memory, {}
        for index, (pid, task) in enumerate(zip(PIDS, tasks, strict=True)):
            if task is not None:  # else it has ended, or not begun
                pages_id = 1 + (index + len(self.rounds)) % len(PIDS)  # another in each round
                self._write(one, pid, pages_id, task, memory.get(pid, {}), last=last)
        self.rounds.append(one)

    def _write(self, one: Round, pid: int, pages_id: int, task: TaskRound, before: Memory, *, last: bool) -> None:
        kinds, now, sent = task.kinds(before, last=last), self.memory.setdefault(pid, {}), b""
        for number, kind in enumerate(kinds):
            at = BASE + number * PAGE_SIZE
            if kind.startswith("fresh"):
                self.contents += 1
                sent += page(self.contents)
                now[at] = page(self.contents), PE_PRESENT if task.form == "old" else FLAGS[kind]
            elif kind == "keep":
                now[at] = before[at]
            elif kind == "source":
                now[at] = b"", PE_LAZY
        name = f"pagemap-{pid}.img"
        entries = list(task.entries(kinds))
        self.wide[pid] = task.form == "wide" and bool(entries)
        one.images[name] = stored(self.arena, name, pagemap(pages_id, *entries), task.chunk)
        if sent or task.cuts[0]:  # an empty one may come or not
            one.images[f"pages-{pages_id}.img"] = stored(self.arena, f"pages-{pages_id}.img", sent, task.chunk)


def decoded(images: dict[str, StoredImage], name: str) -> tuple[str, list[memory_pb2.PagemapEntry]]:
    raw = decode(name, content(images[name]))
    (head,) = raw.messages(memory_pb2.PagemapHead)
    return f"pages-{head.pages_id}.img", raw.messages(memory_pb2.PagemapEntry)


def memory_of(images: dict[str, StoredImage], name: str) -> Memory:
    """What a checkpoint says of a task's memory, read as a CRIU reads it that knows of one round only."""
    pages, entries = decoded(images, name)
    found: Memory = {}
    offset = 0
    for entry in entries:
        flags = entry.flags if entry.HasField("flags") else PE_PRESENT
        assert not flags & PE_PARENT and not entry.in_parent
        assert not entry.HasField("nr_pages") or entry.nr_pages == entry.compat_nr_pages
        for at in range(entry.vaddr, entry.vaddr + PAGE_SIZE * entry.compat_nr_pages, PAGE_SIZE):
            assert at > max(found, default=0), "not ascending"
            data = b""
            if flags & PE_PRESENT:
                data = images[pages].read(offset, PAGE_SIZE)
                offset += PAGE_SIZE
            found[at] = data, flags
    assert offset == (images[pages].size if pages in images else 0)
    return found


def lies_in(part: Extent, images: Iterable[StoredImage]) -> bool:
    return any(
        part.fd == whole.fd and whole.offset <= part.offset and part.offset + part.length <= whole.offset + whole.length
        for one in images
        for whole in one.extents()
    )


def refers(entries: list[memory_pb2.PagemapEntry]) -> bool:
    return any(entry.flags & PE_PARENT or entry.in_parent for entry in entries)


@given(histories)
async def test_the_checkpoint_has_the_memory_that_the_rounds_make(history: list[tuple[TaskRound | None, ...]]) -> None:
    with arena() as place:
        model = Model(place)
        for number, tasks in enumerate(history, 1):
            model.play(tasks, last=number == len(history))
        last = model.rounds[-1].images
        before = {name: content(one) for name, one in last.items()}
        merged = merge(place, *model.rounds)
        assert {pid: memory_of(merged, f"pagemap-{pid}.img") for pid in model.memory} == model.memory
        assert {name: content(one) for name, one in last.items()} == before, "the round is still what came"
        rewritten: set[str] = set()
        for pid in model.memory:
            pages, entries = decoded(last, f"pagemap-{pid}.img")
            if refers(entries):
                rewritten |= {pages, f"pagemap-{pid}.img"}
                originals = [one for each in model.rounds for name, one in each.images.items() if "pages-" in name]
                assert all(lies_in(part, originals) for part in merged[pages].extents()), "pages were copied"
                _, made = decoded(merged, f"pagemap-{pid}.img")
                assert {entry.HasField("nr_pages") for entry in made} <= {model.wide[pid]}
        assert merged.keys() == last.keys() | rewritten
        assert all(merged[name] is last[name] for name in last.keys() - rewritten)


async def test_a_reference_takes_the_flags_of_the_page_and_its_own_form(place: Arena) -> None:
    first = a_round(place, 1, pagemap_1=pagemap(1, extent(BASE, 2, 6), extent(BASE + 8192, 1, 4)), pages_1=bytes(12288))
    second = a_round(place, 2, pagemap_1=pagemap(7, extent(BASE + 4096, 2, 1, nr_pages=2)))
    merged = merge(place, first, second)
    made = pagemap(7, extent(BASE + 4096, 1, 6, nr_pages=1), extent(BASE + 8192, 1, 4, nr_pages=1))
    assert content(merged["pagemap-1.img"]) == made
    assert merged["pages-7.img"].size == 8192
    assert list(merged["pages-7.img"].extents()) == list(first.images["pages-1.img"].extents(4096, 8192))


async def test_shared_memory_is_merged_by_its_own_id(place: Arena) -> None:
    both = {"pagemap_1": pagemap(1, extent(0, 1)), "pagemap_shmem_1": pagemap(2, extent(0, 1))}
    first = a_round(place, 1, **both, pages_1=page(1), pages_2=page(2))
    second = a_round(place, 2, pagemap_1=pagemap(2, extent(0, 1, 1)), pagemap_shmem_1=pagemap(1, extent(0, 1, 1)))
    merged = merge(place, first, second)
    assert (content(merged["pages-2.img"]), content(merged["pages-1.img"])) == (page(1), page(2))


# ---- what may be wrong ----

ONE = {"pagemap_1": pagemap(1, extent(BASE, 4)), "pages_1": bytes(4 * PAGE_SIZE)}


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        pytest.param(
            ONE,
            {"pagemap_1": pagemap(1, extent(BASE + 8192, 3, 1))},
            r"^round s2: pagemap-1\.img: the page at 0x7f0000004000 is said to be in round s1, which does not have it$",
            id="behind what the round before has",
        ),
        pytest.param(
            ONE,
            {"pagemap_1": pagemap(1, extent(BASE - 4096, 2, 1))},
            r"the page at 0x7effffff\w+ is said to be in round s1, which does not have it",
            id="before it",
        ),
        pytest.param(
            {"pagemap_1": pagemap(1, extent(BASE, 1), extent(BASE + 8192, 1)), "pages_1": bytes(8192)},
            {"pagemap_1": pagemap(1, extent(BASE, 3, 1))},
            "the page at 0x7f0000001000 is said",
            id="a hole",
        ),
        pytest.param(
            {"pagemap_1": pagemap(1, extent(BASE, 1, 2))},
            {"pagemap_1": pagemap(1, extent(BASE, 1, 1))},
            "the page at 0x7f0000000000 is said to be in round s1, which does not have it",
            id="a page that was never sent",
        ),
        pytest.param(
            {"pagemap_2": pagemap(1, extent(BASE, 1)), "pages_1": bytes(PAGE_SIZE)},
            {"pagemap_1": pagemap(1, extent(BASE, 1, 1))},
            r"the page at 0x7f0000000000 is said to be in round s1, which has no such image",
            id="no such pagemap",
        ),
        pytest.param(
            {"pagemap_1": pagemap(1, extent(BASE, 1, 1))},
            {},
            r"^round s1: pagemap-1\.img: the page at 0x7f0000000000 is said .* but this is the first$",
            id="no round before",
        ),
        pytest.param(
            ONE,
            {"pagemap_1": pagemap(1, extent(BASE, 2)), "pages_1": bytes(8191)},
            r"^round s2: pagemap-1\.img: lists more pages than came: at 0x7f0000000000, pages-1\.img ends after 8191",
            id="less pages than listed",
        ),
        pytest.param(
            {"pagemap_1": pagemap(3, extent(BASE, 1))},
            ONE,
            r"round s1: .* pages-3\.img ends after 0 bytes",
            id="no pages",
        ),
        pytest.param(
            {"pagemap_1": b"garbage that is no image"},
            ONE,
            r"^round s1: pagemap-1\.img: .*not a CRIU image",
            id="garbage",
        ),
        pytest.param(ONE, {"pagemap_1": b""}, r"^round s2: pagemap-1\.img: .*is empty", id="empty"),
        pytest.param(
            ONE,
            {"pagemap_1": image("pagemap")},
            r"^round s2: pagemap-1\.img: ends before its first entry",
            id="without a head",
        ),
        pytest.param(
            ONE, {"pagemap_1": image("fdinfo")}, r"round s2: pagemap-1\.img: .* is a fdinfo image", id="another kind"
        ),
        pytest.param(
            ONE, {"pagemap_1": ONE["pagemap_1"][:-1]}, r"^round s2: pagemap-1\.img: .*behind the image", id="cut"
        ),
        pytest.param(
            ONE, {"pagemap_1": pagemap(1, extent(BASE, 1, 12))}, "compressed pages .* not supported", id="compressed"
        ),
        pytest.param(
            ONE,
            {"pagemap_1": pagemap(1, extent(BASE + 4096, 1, 1), extent(BASE, 1, 1))},
            r"its extent at 0x7f0000000000 is out of order or bounds",
            id="descending",
        ),
        pytest.param(
            ONE,
            {"pagemap_1": pagemap(1, extent(BASE, 2, 1), extent(BASE + 4096, 1, 1))},
            r"its extent at 0x7f0000001000 is out of order",
            id="overlapping",
        ),
        pytest.param(ONE, {"pagemap_1": pagemap(1, extent(BASE + 1, 1, 1))}, "out of order or bounds", id="unaligned"),
        pytest.param(
            ONE,
            {"pagemap_1": pagemap(1, extent(BASE, 1, 1, nr_pages=(1 << 64) - 1))},
            "out of order or bounds",
            id="beyond the address space",
        ),
        pytest.param(
            ONE,
            {"pagemap_1": pagemap(1, extent(BASE, 1, 5)), "pages_1": bytes(PAGE_SIZE)},
            r"its extent at 0x7f0000000000 is said to be both here and in the round before",
            id="here and there",
        ),
    ],
)
async def test_rounds_that_do_not_fit_are_refused(
    place: Arena, first: dict[str, bytes], second: dict[str, bytes], reason: str
) -> None:
    rounds = a_round(place, 1, **first), a_round(place, 2, **second)
    with pytest.raises(RemoteProtocolError, match=reason):
        merge(place, *rounds)


async def test_a_page_that_was_unmapped_once_is_gone_for_good(place: Arena) -> None:
    rounds = [
        a_round(place, 1, **ONE),
        a_round(place, 2, pagemap_1=pagemap(1, extent(BASE, 1, 1), extent(BASE + 8192, 2, 1))),
        a_round(place, 3, pagemap_1=pagemap(1, extent(BASE, 4, 1))),
    ]
    with pytest.raises(RemoteProtocolError, match=r"^round s3: .* page at 0x7f0000001000 is said to be in round s2"):
        merge(place, *rounds)


async def test_a_task_that_a_round_did_not_have_is_gone_for_good(place: Arena) -> None:
    rounds = a_round(place, 1, **ONE), a_round(place, 2), a_round(place, 3, pagemap_1=pagemap(1, extent(BASE, 4, 1)))
    with pytest.raises(RemoteProtocolError, match=r"^round s3: .* said to be in round s2, which has no such image$"):
        merge(place, *rounds)


async def test_a_dump_without_its_last_image_is_none(place: Arena) -> None:
    last = a_round(place, 2, **ONE)
    del last.images["inventory.img"]
    with pytest.raises(RemoteProtocolError, match=r"^round s2: .* no inventory\.img.*; dump again"):
        merge(place, a_round(place, 1, **ONE), last)


# ---- as recorded ----


def store_of(place: Arena, images: dict[tuple[str, str], bytes], snapshots: list[str]) -> ImageStore:
    """A store into which these images came in rounds."""
    store = ImageStore(place)
    for number, snapshot in enumerate(snapshots, 1):
        store.begin_round(BeginRound(number, snapshot))
        for name in [name for of, name in images if of == snapshot]:
            image_number = 1000 * number + len(store)
            store.open(OpenImage(image_number, name, round=number))
            for part in stored(place, name, images[snapshot, name]).extents():
                store.numbered(image_number).add(part)
            store.end(EndImage(image_number, len(images[snapshot, name])))
    store.finish(ImagesComplete(len(images), sum(map(len, images.values())), "pipe"))
    return store


async def test_a_recorded_dump_after_two_pre_dumps(place: Arena) -> None:
    stream, name = RemoteStream(), "pagemap-369.img"
    images = collected(stream.receive_data(recording("stream-inc-2predumps-dump")))
    latest: dict[int, tuple[str, bytes]] = {}  # each page with the round that has it
    for snapshot in stream.snapshots:
        before, latest, offset = latest, {}, 0
        for entry in decode(name, images[snapshot, name]).messages(memory_pb2.PagemapEntry):
            for at in range(entry.vaddr, entry.vaddr + PAGE_SIZE * entry.compat_nr_pages, PAGE_SIZE):
                if entry.flags & PE_PARENT:
                    latest[at] = before[at]
                else:
                    latest[at] = snapshot, images[snapshot, "pages-1.img"][offset : offset + PAGE_SIZE]
                    offset += PAGE_SIZE
    assert Counter(snapshot for snapshot, _ in latest.values()) == {"s1": 242, "s3": 20}
    store = store_of(place, images, stream.snapshots)
    found = memory_of({one.name: one for one in store}, name)
    assert {at: data for at, (data, _) in found.items()} == {at: data for at, (_, data) in latest.items()}
    assert {flags for _, flags in found.values()} == {PE_PRESENT, PE_PRESENT | PE_LAZY}
    assert len(store) == 12 and store.variant == "pipe"
    assert [one.snapshot for one in store.lineage] == ["s1", "s2", "s3"]
    assert content(store.lineage[1].images[name]) == images["s2", name]
    core = store.named("core-369.img")
    assert content(core) == images["s3", "core-369.img"] and core is store.rounds[-1].images["core-369.img"]
