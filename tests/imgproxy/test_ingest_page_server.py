"""Rounds of pages from a fake CRIU at the page server: what goes out, what is answered and when, what goes wrong."""

import struct
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from imgcache.session import Session
from imgnode.channel import Channel
from imgnode.nursery import flat_nursery
from imgproxy.compression import Compression
from imgproxy.ingest.page_server import PageServer
from imgproxy.ingest.rounds import RoundsIngest
from imgproxy.sender import ImageSender
from imgproxy.source import CacheView, RemotePages, SessionAborted
from imgwire import messages
from imgwire.errors import RemoteProtocolError
from imgwire.page_server_messages import Command, Header, Layout
from imgwire.states import SessionState
from tests.fake_rounds import FORCE_CLOSE, NARROW, PAGE, WIDE, RoundClient
from tests.imgcache.test_layers import Memory, memory_of
from tests.imgwire.page_server_rounds import EXPECTED, RECORDED, Meaning, header, rounds, turns
from tests.playbook import MemoryOutgoing, connected, open_session, random_bytes
from tests.transform.synthetic import mm, vma
from transform.chain import Chain, EndOfDump, Transform
from transform.images.codec import decode
from transform.images.proto import memory_pb2
from transform.memory import EarlierRound

pytestmark = pytest.mark.t1

LAYOUTS = pytest.mark.parametrize("layout", [NARROW, WIDE], ids=["narrow", "wide"])
Cuts = Sequence[tuple[int | None, int | None]]

BASE = 0x10000000
PID = 7


class Served:
    """A page server whose images are kept in memory, round by round."""

    def __init__(self) -> None:
        self.out = MemoryOutgoing()
        self.sender = ImageSender(self.out, Chain([]), Compression("off"))
        self.server = PageServer(self.sender, self._sync)
        self.may_sync = trio.Event()
        self.may_sync.set()
        self.ended_at_sync: list[str] = []
        self.fault: Exception | None = None

    async def _sync(self) -> None:
        self.ended_at_sync = self.out.ended
        await self.may_sync.wait()
        if self.fault:
            raise self.fault

    @asynccontextmanager
    async def criu(self, layout: str = NARROW) -> AsyncIterator[RoundClient]:
        """A CRIU that runs for the length of the block; afterwards the server has seen its end."""
        ours, theirs = trio.socket.socketpair()
        async with flat_nursery() as nursery:
            nursery.start_soon(self.server.take, ours)
            with theirs:
                yield RoundClient(theirs, layout)

    @asynccontextmanager
    async def round(self, *, good: bool = True, layout: str = NARROW) -> AsyncIterator[RoundClient]:
        """A round of such a CRIU; `good`: its exit code."""
        self.out.messages.clear()
        self.server.begin()
        async with self.criu(layout) as criu:
            yield criu
        self.server.end(good=good)

    def extents(self, name: str) -> list[tuple[int, int, int, bytes]]:
        """Of a pagemap that went out: address, pages, flags and payload."""
        raw = decode(name, self.out.images[name])
        (head,) = raw.messages(memory_pb2.PagemapHead)
        pages, offset, found = self.out.images[f"pages-{head.pages_id}.img"], 0, []
        for entry in raw.messages(memory_pb2.PagemapEntry):
            size = entry.compat_nr_pages * PAGE if entry.flags & 4 else 0
            found.append((entry.vaddr, entry.compat_nr_pages, entry.flags, pages[offset : offset + size]))
            offset += size
        assert offset == len(pages), "pages that no extent lists"
        return found


def names(meant: Meaning) -> list[str]:
    return [pagemap.image_name for pagemap in meant]


# ---- what goes out ----


@pytest.mark.parametrize("version", RECORDED)
async def test_a_recorded_round(version: str) -> None:
    served = Served()
    async with served.round() as criu:
        answers = await criu.plays(turns(RECORDED[version]))
    assert served.server.whole
    assert answers == [b"\0"] * (len(answers) - 1) + [bytes(4)]
    for name, extents in EXPECTED[version]:
        came = [(at, count, flags, data.rstrip(b"\0")) for at, count, flags, data in served.extents(name)]
        assert came == extents
    assert len(served.out.ended) == len(served.out.images) == 2 * len(EXPECTED[version])


@given(rounds())
async def test_any_round(one: tuple[list[bytes], Meaning]) -> None:
    """Of which the round before knows all pagemaps, so that it may refer to it."""
    said, meant = one
    served = Served()
    before = [header(Layout.WIDE, Command.OPEN2, pagemap) for pagemap in meant]
    async with served.round(layout=WIDE) as criu:
        await criu.plays([*before, Header(Command.CLOSE).encode(Layout.WIDE)])
    async with served.round() as criu:
        answers = await criu.plays(said)
    assert served.server.whole
    assert answers == [b"\1"] * len(meant) + [bytes(4)]
    for pagemap, extents in meant.items():
        wanted = [(extent.address, extent.pages, int(extent.flags), data) for extent, data in extents]
        assert served.extents(pagemap.image_name) == wanted
    assert sorted(served.out.ended) == sorted([*names(meant), *(f"pages-{n + 1}.img" for n in range(len(meant)))])


@LAYOUTS
async def test_pages_go_on_while_they_come(layout: str) -> None:
    """More than all pipes and sockets hold; nothing of it is kept."""
    served, data = Served(), random_bytes(4 << 20)
    async with served.round(layout=layout) as criu:
        await criu.opens(PID)
        for start in range(0, len(data), 1 << 20):
            await criu.brings(PID, BASE + 2 * start, data[start : start + (1 << 20)])
        assert await criu.closes() == 0
    assert b"".join(part for *_, part in served.extents("pagemap-7.img")) == data


async def test_bytes_that_come_one_by_one() -> None:
    served, data = Served(), random_bytes(PAGE)
    async with served.round() as criu:
        for byte in criu.header(4, PID):
            await criu.say(bytes([byte]))
        await criu.hear(1)
        for byte in criu.header(4 << 16 | 6, PID, 1, BASE):
            await criu.say(bytes([byte]))
        await criu.say(data[:100])
        await trio.testing.wait_all_tasks_blocked()
        await criu.say(data[100:])
        for byte in criu.header(0x1023):
            await criu.say(bytes([byte]))
        assert await criu.hear(4) == bytes(4)
    assert served.extents("pagemap-7.img") == [(BASE, 1, 4, data)]


# ---- what is answered, and when ----


@LAYOUTS
async def test_a_good_round_can_be_referred_to(layout: str) -> None:
    served, data = Served(), random_bytes(PAGE)
    async with served.round(layout=layout) as criu:
        assert not await criu.asks(PID)
        assert not await criu.opens(PID)
        await criu.brings(PID, BASE, data)
        await criu.closes()
    async with served.round(layout=layout) as criu:
        assert not await criu.asks(8)
        assert await criu.asks(PID)
        assert not await criu.opens(8)
        assert await criu.opens(PID)
        await criu.refers(PID, BASE, 1)
        await criu.brings(PID, BASE + PAGE, data, flags=6)
        await criu.closes()
    assert served.extents("pagemap-8.img") == []
    assert served.extents("pagemap-7.img") == [(BASE, 1, 1, b""), (BASE + PAGE, 1, 6, data)]
    async with served.round(layout=layout) as criu:
        await criu.closes()
    async with served.round(layout=layout) as criu:
        assert not await criu.asks(PID), "it is gone: the round before had no such task"


@pytest.mark.parametrize("failure", ["exit code", "no close"])
async def test_a_round_that_failed_cannot(failure: str) -> None:
    """Nor can those before it: CRIU has reset what the kernel knew of changes since."""
    served = Served()
    async with served.round() as criu:
        await criu.opens(PID)
        await criu.closes()
    async with served.round(good=False) as criu:
        assert await criu.opens(PID)
        if failure == "exit code":
            await criu.closes()
    async with served.round() as criu:
        assert not await criu.asks(PID)
        assert not await criu.opens(PID)
        await criu.closes()
    async with served.round() as criu:
        assert await criu.opens(PID)
        await criu.closes()


async def test_close_is_answered_when_the_cache_has_it_all() -> None:
    served, answered = Served(), trio.Event()
    served.may_sync = trio.Event()

    async def close(criu: RoundClient) -> None:
        assert await criu.closes() == 0
        answered.set()

    async with served.round() as criu:
        await criu.opens(PID)
        await criu.brings(PID, BASE, bytes(PAGE))
        async with flat_nursery() as nursery:
            nursery.start_soon(close, criu)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert sorted(served.ended_at_sync) == ["pagemap-7.img", "pages-1.img"], "all went out before it is asked"
            assert not served.server.whole and not answered.is_set()
            served.may_sync.set()
        assert served.server.whole


async def test_force_close_hangs_up() -> None:
    """The client cannot: it waits for us to do it."""
    served = Served()
    async with served.round() as criu:
        await criu.opens(PID)
        assert await criu.closes(FORCE_CLOSE) == 0
        with pytest.raises(EOFError):
            await criu.hear(1)
    assert served.server.whole


async def test_a_close_that_is_all_there_is() -> None:
    """Of either layout, which nothing tells apart."""
    for layout in (NARROW, WIDE):
        served = Served()
        async with served.round(layout=layout) as criu:
            assert await criu.closes() == 0
        assert served.server.whole and not served.out.images


# ---- what goes wrong ----

OPENED = struct.pack(NARROW, 4, 0, 0, PID << 8 | 1)
HALF_AN_EXTENT = struct.pack(NARROW, 4 << 16 | 6, 2, BASE, PID << 8 | 1) + bytes(PAGE + 1)


@pytest.mark.parametrize(
    "said",
    [
        pytest.param([], id="nothing"),
        pytest.param([OPENED[:5]], id="half a header"),
        pytest.param([OPENED], id="a task without pages"),
        pytest.param([OPENED, HALF_AN_EXTENT], id="half an extent"),
        pytest.param([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], id="garbage"),
        pytest.param([OPENED, bytes(24)], id="garbage behind a task"),
        pytest.param([OPENED, struct.pack(NARROW, 1 << 16 | 6, 1, BASE, PID << 8 | 1)], id="refers to no round"),
        pytest.param([OPENED, OPENED], id="a task twice"),
    ],
)
async def test_a_round_that_goes_wrong_leaves_a_server_that_works(said: list[bytes]) -> None:
    served = Served()
    async with served.round() as criu:
        for turn in said:
            await criu.say(turn)
        await trio.testing.wait_all_tasks_blocked()
    assert not served.server.whole
    assert set(served.out.ended) == set(served.out.images), "a round with open images cannot be dropped"
    async with served.round() as criu:
        assert not await criu.opens(PID)
        await criu.brings(PID, BASE, bytes(PAGE))
        assert await criu.closes() == 0
    assert served.server.whole
    assert served.extents("pagemap-7.img") == [(BASE, 1, 4, bytes(PAGE))]


async def test_a_criu_that_says_nonsense_is_hung_up_on() -> None:
    """It may hold frozen tasks while it waits for an answer."""
    served = Served()
    async with served.round() as criu:
        await criu.opens(PID)
        await criu.say(bytes(24))
        with pytest.raises((EOFError, ConnectionResetError)):
            await criu.hear(1)
    assert not served.server.whole


async def test_a_criu_is_hung_up_on_when_we_are_stopped() -> None:
    served = Served()
    served.server.begin()
    ours, theirs = trio.socket.socketpair()
    with theirs:
        async with flat_nursery() as nursery:
            nursery.start_soon(served.server.take, ours)
            criu = RoundClient(theirs)
            await criu.opens(PID)
            await criu.brings(PID, BASE, bytes(PAGE))
            nursery.cancel_scope.cancel()
        with pytest.raises((EOFError, ConnectionResetError)):
            await criu.hear(1)


@pytest.mark.parametrize(
    ("fault", "passes"), [(RemoteProtocolError("no room there"), False), (SessionAborted("given up"), True)]
)
async def test_a_cache_that_does_not_take_it(fault: Exception, passes: bool) -> None:
    """CLOSE is not answered; the session's end is not this round's alone."""
    served = Served()
    served.fault = fault

    async def run() -> None:
        async with served.round() as criu:
            await criu.opens(PID)
            with pytest.raises(EOFError):
                await criu.closes()

    if passes:
        with pytest.raises(type(fault)):
            await run()
    else:
        await run()
    assert not served.server.whole


# ---- over a link, to a cache that merges ----

PIDS = (7, 8)
PAGES = 8  #: in the address space of a model's task
KINDS = ("fresh", "lazy", "keep", "keep", "gone")
ENDS = ("good", "good", "good", "exit code", "no close")


@dataclass(frozen=True)
class PlannedRound:
    """What happens to each page of each task (None: there is no such task), and how the round ends."""

    tasks: tuple[list[str] | None, ...]
    end: str
    layout: str


planned_rounds = st.builds(
    PlannedRound,
    tasks=st.tuples(
        *[st.none() | st.lists(st.sampled_from(KINDS), min_size=PAGES, max_size=PAGES) for _ in PIDS],
    ),
    end=st.sampled_from(ENDS),
    layout=st.sampled_from([NARROW, WIDE]),
)


@dataclass
class Process:
    """Two tasks whose CRIU sends what changed, or everything where it is told that the round before has nothing."""

    memory: dict[int, Memory] = field(default_factory=dict)
    contents: int = 0

    async def send(self, criu: RoundClient, tasks: tuple[list[str] | None, ...]) -> None:
        before, self.memory = self.memory, {}
        for pid, kinds in zip(PIDS, tasks, strict=True):
            if kinds is not None:
                known = await criu.opens(pid)
                assert not known or pid in before
                await self._send_task(criu, pid, kinds, before.get(pid, {}) if known else {})

    async def _send_task(self, criu: RoundClient, pid: int, kinds: list[str], before: Memory) -> None:
        now = self.memory[pid] = {}
        sent = []
        for number, kind in enumerate(kinds):
            at = BASE + number * PAGE
            if kind == "keep" and at in before:
                now[at] = before[at]
                sent.append((kind, at))
            elif kind != "gone":
                self.contents += 1
                now[at] = self.contents.to_bytes(8, "little") * (PAGE // 8), 6 if kind == "lazy" else 4
                sent.append((str(now[at][1]), at))
        for (kind, _), members in groupby(enumerate(sent), lambda one: (one[1][0], one[1][1] - one[0] * PAGE)):
            places = [at for _, (_, at) in members]
            if kind == "keep":
                await criu.refers(pid, places[0], len(places))
            else:
                await criu.brings(pid, places[0], b"".join(now[at][0] for at in places), int(kind))


class Linked:
    """The rounds' ingest of a session, and the session at the cache."""

    def __init__(
        self, directory: Path, channel: Channel, session: Session, transforms: Sequence[Transform], *, dedup: bool
    ) -> None:
        self.session, self._channel, self.view = session, channel, CacheView()
        self.sender = ImageSender(channel, Chain(transforms), Compression("off"), dedup=dedup)
        self.ingest = RoundsIngest(self.sender, lambda dump: Chain(transforms if dump else ()), self._sync, directory)

    async def _sync(self) -> None:
        await self.view.ask(self._channel, messages.Sync)

    @asynccontextmanager
    async def criu(self, layout: str = NARROW, *, dump: bool = False) -> AsyncIterator[RoundClient]:
        ours, theirs = trio.socket.socketpair()
        self.ingest.prepare()
        await self.ingest.begin(dump=dump)
        async with flat_nursery() as nursery:
            nursery.start_soon(self.ingest.take, ours)
            with theirs:
                yield RoundClient(theirs, layout)

    async def pre_dump(self, process: Process, one: PlannedRound) -> None:
        parent = self.ingest.parent
        async with self.criu(one.layout) as criu:
            await process.send(criu, one.tasks)
            if one.end != "no close":
                await criu.closes()
        await self.ingest.end(good=one.end == "good")
        assert parent is None or parent != self.ingest.directory
        assert self.ingest.parent == (self.ingest.directory if one.end == "good" else None)

    async def dump(self, process: Process, one: PlannedRound) -> None:
        async with self.criu(one.layout, dump=True) as criu:
            await process.send(criu, one.tasks)
            await criu.closes()
            assert not self.ingest.complete, "its other images are to be sent"
            (self.ingest.directory / "inventory.img").write_bytes(b"inventory")
            (self.ingest.directory / "dump.log").write_bytes(b"no image")
            for pid in process.memory:
                (self.ingest.directory / f"mm-{pid}.img").write_bytes(mm(vma(BASE, BASE + PAGES * PAGE)))
            await self.ingest.finish()
        assert self.ingest.complete
        pages = RemotePages(self._channel, self.view, self.sender)
        before = [EarlierRound(pagemaps, pages.of(sent)) for pagemaps, sent in self.sender.earlier_rounds()]
        await self.sender.finish(pages, before=before)
        await self.view.wait_for(lambda: self.view.state is SessionState.COMPLETE)


@asynccontextmanager
async def linked(
    place: Path, cuts: Cuts = (), transforms: Sequence[Transform] = (), *, dedup: bool = False
) -> AsyncIterator[Linked]:
    """On a link whose first connections are cut after so many bytes from either side."""
    (place / "images").mkdir()
    channel = Channel()
    with open_session(place) as session:
        one = Linked(place / "images", channel, session, transforms, dedup=dedup)
        try:
            async with flat_nursery() as nursery, one.ingest.listening(place):
                nursery.start_soon(partial(connected, channel, session.source.channel, one.view, session, cuts=cuts))
                nursery.start_soon(session.run, 60)
                yield one
                nursery.cancel_scope.cancel()
        finally:
            channel.close()


budgets = st.tuples(st.none() | st.integers(0, 100_000), st.none() | st.integers(0, 1000))


@given(st.lists(planned_rounds, min_size=1, max_size=5), st.lists(budgets, max_size=3))
async def test_the_cache_has_the_memory_whatever_became_of_the_rounds(history: list[PlannedRound], cuts: Cuts) -> None:
    process = Process()
    with tempfile.TemporaryDirectory() as place:
        async with linked(Path(place), cuts) as one:
            for planned in history[:-1]:
                await one.pre_dump(process, planned)
            await one.dump(process, history[-1])
            store = one.session.store
            merged = {image.name: image for image in store}
            assert {pid: memory_of(merged, f"pagemap-{pid}.img") for pid in process.memory} == process.memory
            assert {"inventory.img", *(f"pagemap-{pid}.img" for pid in process.memory)} <= merged.keys()
            failed = sum(planned.end != "good" for planned in history[:-1])
            assert len(store.rounds) == len(history) - failed


async def test_a_dump_that_has_not_brought_its_pages_is_not_complete(tmp_path: Path) -> None:
    async with linked(tmp_path) as one:
        async with one.criu(dump=True) as criu:
            await criu.opens(PID)
        (one.ingest.directory / "inventory.img").write_bytes(b"inventory")
        with pytest.raises(RemoteProtocolError, match="has not brought its pages"):
            await one.ingest.finish()
        assert not one.ingest.complete


async def test_a_cache_that_gives_up_ends_the_round(tmp_path: Path) -> None:
    with pytest.raises(SessionAborted, match="no room"):
        async with linked(tmp_path) as one, one.criu() as criu:
            await criu.opens(PID)
            await criu.brings(PID, BASE, bytes(PAGE))
            one.session.abort("no room")
            with pytest.raises(EOFError):
                await criu.closes()


@dataclass
class Stamp:
    """A transform that changes a word of every page that the dump has, or leaves to a round before: it adds one."""

    process: Process
    name: str = "stamp"
    needs_memory: bool = True
    warnings: tuple[str, ...] = ()

    def wants(self, image: str) -> bool:
        return False

    def transform(self, image: str, data: bytes) -> bytes:
        raise AssertionError(f"{image} is not wanted")

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        for pid, pages in self.process.memory.items():
            memory = dump.memory(pid)
            for at in pages:
                word = int.from_bytes(memory.read(at + 8, 8), "little")
                memory.write(at + 8, (word + 1).to_bytes(8, "little"))
        return {}

    @staticmethod
    def stamped(page: bytes) -> bytes:
        """What it makes of one."""
        return page[:8] + (int.from_bytes(page[8:16], "little") + 1).to_bytes(8, "little") + page[16:]


@pytest.mark.parametrize("dedup", [False, True])
@settings(max_examples=30)
@given(st.lists(planned_rounds, min_size=1, max_size=5))
async def test_a_transform_finds_pages_in_the_rounds_before(dedup: bool, history: list[PlannedRound]) -> None:
    process = Process()
    with tempfile.TemporaryDirectory() as place:
        async with linked(Path(place), transforms=[Stamp(process)], dedup=dedup) as one:
            for planned in history[:-1]:
                await one.pre_dump(process, planned)
            await one.dump(process, history[-1])
            merged = {image.name: image for image in one.session.store}
            for pid, pages in process.memory.items():
                wanted = {at: (Stamp.stamped(page), flags) for at, (page, flags) in pages.items()}
                assert memory_of(merged, f"pagemap-{pid}.img") == wanted


async def test_pagemaps_that_are_too_many_fail_their_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows is a round that refers to none."""
    monkeypatch.setattr("imgproxy.sender.COLLECTED_LIMIT", 100)
    process = Process()
    async with linked(tmp_path, transforms=[Stamp(process)]) as one:
        await one.pre_dump(process, PlannedRound((["fresh"] * PAGES, None), "good", NARROW))
        async with one.criu() as criu:
            await process.send(criu, (["keep", "fresh"] * (PAGES // 2), ["fresh"] * PAGES))
            with pytest.raises(EOFError, match="hung up"):
                await criu.closes()
        await one.ingest.end(good=True)
        assert "pagemaps of 0 MiB are kept already" in one.ingest.server.failure
        assert one.ingest.parent is None
        await one.dump(process, PlannedRound((["keep"] * PAGES, None), "good", NARROW))
        merged = {image.name: image for image in one.session.store}
        wanted = {at: (Stamp.stamped(page), flags) for at, (page, flags) in process.memory[PIDS[0]].items()}
        assert memory_of(merged, f"pagemap-{PIDS[0]}.img") == wanted
