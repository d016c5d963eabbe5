"""Images from CRIU's pipes to the cache's store, over a channel: byte for byte, whatever is between."""

import random
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from imgcache.arena import MemoryBudget
from imgcache.image import StoredImage
from imgcache.session import Session
from imgnode.channel import Channel
from imgnode.nursery import flat_nursery
from imgnode.pipes import Pipe, write_all
from imgproxy.compression import Compression
from imgproxy.sender import ImageSender
from imgproxy.source import CacheView, RemotePages, SessionAborted
from imgwire.messages import BeginRound, DropRound, EndImage, ImagesComplete, OpenImage
from imgwire.states import SessionState
from tests.playbook import (
    MakePair,
    MemoryOutgoing,
    complete,
    connected,
    filled_pipe,
    open_session,
    pipe_pair,
    put_image,
    random_bytes,
    socket_pair,
    stream_pair,
    while_connected,
)
from transform.chain import Chain, EndOfDump, Transform
from transform.errors import TransformError

pytestmark = pytest.mark.t1

NOISE, TEXT = random_bytes(3_333_333), b"compressible " * 300_000
IMAGES = {
    "pages-1.img": NOISE,
    "files.img": b"files" * 1000,
    "pages-2.img": TEXT,
    "pages-3.img": b"",
    "memfd.img": b"",
    "core-1.img": random_bytes(2_000_000, 5),
    "inventory.img": b"inventory",
}
Cuts = Sequence[tuple[int | None, int | None]]


@dataclass(frozen=True)
class PlannedRound:
    """A pre-dump or a dump: its images, and whether it fails in the end."""

    snapshot: str
    images: dict[str, bytes]
    transforms: tuple[Transform, ...] = ()
    dropped: bool = False


def contents(images: Iterable[StoredImage]) -> dict[str, bytes]:
    return {image.name: image.read(0, image.size) for image in images}


class Source:
    """A proxy's side without CRIU: a channel to a session, a sender, the view of the cache."""

    def __init__(
        self, session: Session, compress: str, *transforms: Transform, splices: bool = True, dedup: bool = False
    ) -> None:
        self.session = session
        self.channel = Channel(splices=splices)
        self.view = CacheView()
        self.sender = ImageSender(self.channel, Chain(transforms), Compression(compress), dedup=dedup)
        self.checkpoint: dict[str, bytes] = {}  # what the cache has in the end
        self.rounds: dict[str, dict[str, bytes]] = {}  # of each snapshot

    async def send(self, images: dict[str, bytes]) -> None:
        """All images at once, each from its pipe."""
        async with flat_nursery() as nursery:
            for name, data in images.items():
                nursery.start_soon(self._send, name, data)

    async def _send(self, name: str, data: bytes) -> None:
        pipe = Pipe()
        try:
            async with flat_nursery() as nursery:
                nursery.start_soon(self._write, pipe, data)
                await self.sender.send_from_pipe(name, pipe.reader)
        finally:
            pipe.close()

    async def _write(self, pipe: Pipe, data: bytes) -> None:
        await write_all(pipe.writer, data)
        pipe.close_writer()

    async def finish(self) -> None:
        """The end of the dump; until the cache says complete."""
        await self.sender.finish(RemotePages(self.channel, self.view, self.sender))
        await self.view.wait_for(lambda: self.view.state is SessionState.COMPLETE)
        self.checkpoint = contents(self.session.store)
        self.rounds = {one.snapshot: contents(one.images.values()) for one in self.session.store.rounds}

    async def run(
        self, images: dict[str, bytes], pair: MakePair = socket_pair, cuts: Cuts = ()
    ) -> tuple[dict[str, bytes], int]:
        """Send the images over a link that may be cut; return what the cache has then, and how often it was cut."""
        reconnects = await self._linked(partial(self._send_and_finish, images), pair, cuts)
        return self.checkpoint, reconnects

    async def run_rounds(self, *rounds: PlannedRound, cuts: Cuts = ()) -> tuple[dict[str, dict[str, bytes]], int]:
        """Send rounds likewise; return what the cache has then of each, by snapshot."""

        async def send() -> None:
            for planned in rounds:
                await self.sender.begin_round(planned.snapshot, Chain(planned.transforms))
                await self.send(planned.images)
                if planned.dropped:
                    await self.sender.drop_round()
            await self.finish()

        reconnects = await self._linked(send, socket_pair, cuts)
        return self.rounds, reconnects

    async def _send_and_finish(self, images: dict[str, bytes]) -> None:
        await self.send(images)
        await self.finish()

    async def _linked(self, send: Callable[[], Awaitable[None]], pair: MakePair, cuts: Cuts) -> int:
        async def link() -> None:
            async with flat_nursery() as nursery:
                nursery.start_soon(self.session.run, 1e9)
                await connected(
                    self.channel, self.session.source.channel, self.view, self.session, pair=pair, cuts=cuts
                )

        try:
            await while_connected(send, link)
        finally:
            self.channel.close()
        return self.channel.reconnects


@pytest.mark.parametrize("pair", [socket_pair, pipe_pair, stream_pair])
@pytest.mark.parametrize("compress", ["off", "1", "auto"])
async def test_images_arrive_byte_for_byte(node_dir: Path, pair: MakePair, compress: str) -> None:
    with open_session(node_dir) as session:
        source = Source(session, compress, splices=pair is not stream_pair)
        assert await source.run(IMAGES, pair) == (IMAGES, 0)
        assert source.sender.size == sum(map(len, IMAGES.values()))
        assert source.sender.bytes_by_kind["pages"] == len(NOISE) + len(TEXT)
        if compress == "1":
            assert source.channel.bytes_sent < source.sender.size - len(TEXT) // 2


@pytest.mark.parametrize("compress", ["off", "1"])
async def test_images_arrive_over_a_link_that_is_cut(node_dir: Path, compress: str) -> None:
    with open_session(node_dir) as session:
        source = Source(session, compress)
        cuts = [(1_000_000, None), (10, None), (70_000, None), (None, 30), (500_000, None)]
        found, reconnects = await source.run(IMAGES, socket_pair, cuts)
        assert found == IMAGES and reconnects > 3


async def test_pages_are_digested_when_asked(node_dir: Path) -> None:
    with open_session(node_dir) as session:
        source = Source(session, "off")
        source.sender = ImageSender(source.channel, Chain([]), Compression("off"), digest_pages=True)
        assert await source.run(IMAGES) == (IMAGES, 0)


class Rewriter:
    """Changes files.img at once, holds core-1.img to the end, adds an image, and rewrites a page that has gone."""

    name = "rewriter"
    needs_memory = False
    warnings = ()

    def __init__(self) -> None:
        self.core = b""
        self.read = b""

    def wants(self, image: str) -> bool:
        return image in ("files.img", "core-1.img")

    def transform(self, image: str, data: bytes) -> bytes | None:
        if image == "files.img":
            return data.replace(b"files", b"FILES!")
        self.core = data
        return None

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        self.read = dump.store.read("pages-1.img", 1_000_000, 2_000_000)
        dump.store.patch("pages-1.img", 1_048_570, b"patched across frames")
        dump.store.patch("pages-1.img", 2_000_000, self.read[: (1 << 20) + 5])
        return {"core-1.img": self.core[::-1], "added.img": b"new"}


@pytest.mark.parametrize("pair", [socket_pair, stream_pair])
async def test_transforms_change_small_images_and_pages_that_have_gone(node_dir: Path, pair: MakePair) -> None:
    rewriter = Rewriter()
    with open_session(node_dir) as session:
        source = Source(session, "off", rewriter, splices=pair is not stream_pair)
        found, _ = await source.run(IMAGES, pair)
    pages = bytearray(NOISE)
    pages[1_048_570 : 1_048_570 + 21] = b"patched across frames"
    pages[2_000_000 : 2_000_000 + (1 << 20) + 5] = NOISE[1_000_000 : 1_000_000 + (1 << 20) + 5]
    changed = {"files.img": b"FILES!" * 1000, "core-1.img": IMAGES["core-1.img"][::-1], "added.img": b"new"}
    assert rewriter.read == NOISE[1_000_000:3_000_000]
    assert found == {**IMAGES, **changed, "pages-1.img": bytes(pages)}


async def test_many_ranges_are_read_and_patched_in_turn(node_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than may be under way, larger than that, of no bytes; each is answered in its place."""
    monkeypatch.setattr("imgproxy.source.MAX_UNDER_WAY", 100_000)
    ranges = [(start, length) for start in range(0, 2_000_000, 7001) for length in (0, 900, 40_000)]
    ranges.insert(5, (3, 2_500_000))

    class Many(Rewriter):
        def finish(self, dump: EndOfDump) -> dict[str, bytes]:
            found = dump.store.read_all([("pages-1.img", *one) for one in ranges])
            assert found == [NOISE[start : start + length] for start, length in ranges]
            assert dump.store.read_all([]) == []
            dump.store.patch_all([("pages-1.img", 10, b"over"), ("pages-2.img", 0, b"two"), ("pages-1.img", 12, b"it")])
            assert dump.store.read_all([("pages-1.img", 9, 6), ("pages-2.img", 0, 3)])[0][1:5] == b"ovit"
            return {"core-1.img": self.core}

    with open_session(node_dir) as session:
        found, _ = await Source(session, "off", Many()).run(IMAGES)
    assert found["pages-1.img"] == NOISE[:10] + b"ovit" + NOISE[14:]
    assert found["pages-2.img"] == b"two" + IMAGES["pages-2.img"][3:]


async def test_a_read_back_that_cannot_be_is_refused(node_dir: Path) -> None:
    class Greedy(Rewriter):
        def finish(self, dump: EndOfDump) -> dict[str, bytes]:
            dump.store.read("pages-2.img", len(TEXT) - 1, 2)
            return {"core-1.img": self.core}

    refused = pytest.raises(SessionAborted, match=r"pages-2\.img: bytes .* of an image of")
    with open_session(node_dir) as session, refused:
        await Source(session, "off", Greedy()).run(IMAGES)


async def test_a_store_that_is_full_aborts_the_session_alone(node_dir: Path) -> None:
    budget = MemoryBudget(2_000_000)
    with open_session(node_dir, budget=budget) as other, open_session(node_dir, budget=budget) as session:
        await put_image(other, "pages-1.img", b"other")
        with pytest.raises(SessionAborted, match="memory limit of 1 MiB is reached"):
            await Source(session, "off").run(IMAGES)
        assert session.state is SessionState.ABORTED
        complete(other)
        assert other.state is SessionState.COMPLETE and other.store.named("pages-1.img").read(0, 5) == b"other"


async def test_more_than_a_transform_may_collect_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgproxy.sender.COLLECTED_LIMIT", 1000)
    sender = ImageSender(MemoryOutgoing(), Chain([Rewriter()]), Compression("off"))
    with filled_pipe(bytes(1001)) as pipe:
        pipe.close_writer()
        with pytest.raises(TransformError, match=r"files\.img: larger than"):
            await sender.send_from_pipe("files.img", pipe.reader)


# ---- rounds ----


def round_images(seed: int) -> dict[str, bytes]:
    """Images of the same names in each round, of other bytes and sizes."""
    return {
        "pages-1.img": random_bytes(1_300_000 + seed, seed),
        "pages-2.img": TEXT[seed : 900_000 + seed * 100_000],
        f"core-{seed}.img": random_bytes(100_000, seed + 100),
        "files.img": b"files" * seed,
        "inventory.img": b"inventory %d" % seed,
    }


ROUNDS = [PlannedRound(f"/images/{seed}", round_images(seed), dropped=seed in (2, 4)) for seed in range(1, 6)]
KEPT = {planned.snapshot: planned.images for planned in ROUNDS if not planned.dropped}


@pytest.mark.parametrize("compress", ["off", "1"])
async def test_images_arrive_in_their_round(node_dir: Path, compress: str) -> None:
    with open_session(node_dir) as session:
        source = Source(session, compress)
        assert await source.run_rounds(*ROUNDS) == (KEPT, 0)
        kept = [data for images in KEPT.values() for data in images.values()]
        assert source.sender.totals() == (len(kept), sum(map(len, kept))) == (15, session.store.size)
        assert source.sender.size == sum(len(data) for planned in ROUNDS for data in planned.images.values())
        assert session.store.arena.memory_bytes < session.store.size + 15 * 65536
        assert {image.name for image in session.store} == ROUNDS[-1].images.keys()


@pytest.mark.parametrize("seed", range(3))
async def test_images_arrive_in_their_round_over_a_link_that_is_cut(node_dir: Path, seed: int) -> None:
    chance = random.Random(seed)
    cuts = [(chance.randrange(1_000_000), None) if chance.random() < 0.8 else (None, 100) for _ in range(12)]
    with open_session(node_dir) as session:
        found, reconnects = await Source(session, "off").run_rounds(*ROUNDS, cuts=cuts)
        assert found == KEPT and reconnects > 3


async def test_a_dump_that_is_dropped_leaves_the_rounds_before(node_dir: Path) -> None:
    failed = PlannedRound("failed", round_images(2), dropped=True)
    with open_session(node_dir) as session:
        source = Source(session, "off")
        found, _ = await source.run_rounds(ROUNDS[0], failed)
        assert found == {ROUNDS[0].snapshot: ROUNDS[0].images}
        assert source.sender.images == {} and source.sender.totals()[0] == 5


async def test_each_round_has_its_own_transforms(node_dir: Path) -> None:
    first, last = round_images(1), {**IMAGES, "pages-1.img": NOISE}
    rewriter, unused = Rewriter(), Rewriter()
    with open_session(node_dir) as session:
        source = Source(session, "off", unused)
        rounds = PlannedRound("pre", first), PlannedRound("dump", last, (rewriter,))
        found, _ = await source.run_rounds(*rounds)
    assert found["pre"] == first, "nothing of an earlier round was changed"
    assert rewriter.read == NOISE[1_000_000:3_000_000] and not unused.read and not unused.core
    assert found["dump"].keys() == {*last, "added.img"} and found["dump"]["files.img"] == b"FILES!" * 1000
    assert found["dump"]["pages-1.img"][1_048_570:].startswith(b"patched across frames")


async def test_what_is_said_of_rounds() -> None:
    out = MemoryOutgoing()
    sender = ImageSender(out, Chain([]), Compression("off"))
    await sender.begin_round("a", Chain([]))
    await sender.send_whole("files.img", b"first")
    await sender.drop_round()
    await sender.begin_round("b", Chain([]))
    await sender.send_whole("files.img", b"second")
    await sender.finish(RemotePages(out, CacheView(), sender), "pipe")
    said = [message for message in out.messages if not isinstance(message, EndImage)]
    assert said == [
        BeginRound(1, "a"),
        OpenImage(0, "files.img", digest=True, round=1),
        DropRound(1),
        BeginRound(2, "b"),
        OpenImage(1, "files.img", digest=True, round=2),
        ImagesComplete(1, 6, "pipe"),
    ]
