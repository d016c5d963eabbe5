"""Pages that the cache has do not cross the link: rounds of random memory through a real channel, equal in the end."""

import random
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imgcache.archive import Archive
from imgcache.arena import MemoryBudget
from imgcache.session import Session
from imgnode.nursery import flat_nursery
from imgnode.pipes import Pipe, write_all
from imgproxy.compression import Compression
from imgproxy.one_way import archive
from imgproxy.sender import ImageSender
from imgwire.errors import UsageError
from imgwire.messages import ImagesComplete
from imgwire.states import SessionState
from tests.imgproxy.test_sender import IMAGES, Cuts, Rewriter, Source
from tests.playbook import (
    MakePair,
    MemoryOutgoing,
    connected,
    open_session,
    pipe_pair,
    random_bytes,
    socket_pair,
    stream_pair,
    while_connected,
)
from transform.chain import Chain, EndOfDump
from transform.extents import PAGE_SIZE

pytestmark = pytest.mark.t1

Numbers = Sequence[int]
#: Memory of a round: the pages of each of its images, by their contents; 0 is a page of zeroes.
Memory = Sequence[Numbers]


def joined(numbers: Numbers) -> bytes:
    return b"".join(number.to_bytes(4, "little") * (PAGE_SIZE // 4) for number in numbers)


class Rounds:
    """Sends rounds of page images as they are planned; what the cache has, and what crossed the link."""

    def __init__(self, session: Session, compress: str = "off", *, splices: bool = True) -> None:
        self.source = Source(session, compress, splices=splices, dedup=True)
        self.sent: list[int] = []  # pages of each round that went out

    async def run(
        self,
        rounds: Sequence[Memory],
        dropped: frozenset[int] = frozenset(),
        pair: MakePair = socket_pair,
        cuts: Cuts = (),
    ) -> None:
        """The last round is the dump."""

        async def send() -> None:
            sender = self.source.sender
            for number, memory in enumerate(rounds):
                await sender.begin_round("", Chain(()))
                images = {f"pages-{at}.img": joined(numbers) for at, numbers in enumerate(memory, 1)}
                last = {"inventory.img": b"inventory"} if number == len(rounds) - 1 else {}
                await self.source.send(images | last)
                assert sender.pages is not None
                self.sent.append(sender.pages.sent)
                if number in dropped:
                    await sender.drop_round()
            await self.source.finish()

        await self.source._linked(send, pair, cuts)


def in_order(rounds: Sequence[Memory], dropped: frozenset[int]) -> list[int]:
    """Distinct contents of each round that neither the good one before has nor the round itself."""
    before, counts = set[int](), []
    for number, memory in enumerate(rounds):
        now = {content for numbers in memory for content in numbers} - {0}
        counts.append(len(now - before))
        before = before if number in dropped else now
    return counts


memories = st.lists(st.lists(st.integers(0, 40), max_size=60), min_size=1, max_size=3)


@given(st.lists(memories, min_size=1, max_size=4), st.sets(st.integers(0, 2)))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_memory_arrives(node_dir: Path, rounds: list[list[list[int]]], failing: set[int]) -> None:
    dropped = frozenset(number for number in failing if number < len(rounds) - 1)

    async def main() -> None:
        with open_session(node_dir, budget=MemoryBudget(None)) as session:
            run = Rounds(session)
            await run.run(rounds, dropped)
            expected = {f"pages-{at}.img": joined(numbers) for at, numbers in enumerate(rounds[-1], 1)}
            assert run.source.checkpoint == expected | {"inventory.img": b"inventory"}
            assert run.sent == in_order(rounds, dropped)

    trio.run(main)


def changing(rounds: int, pages: int, changes: int) -> list[list[list[int]]]:
    """Memory of one image, in which a few pages change from round to round."""
    numbers, fresh = list(range(1, pages + 1)), pages + 1
    made: list[list[list[int]]] = []
    for one in range(rounds):
        made.append([list(numbers)])
        for at in random.Random(one).sample(range(pages), changes):
            numbers[at], fresh = fresh, fresh + 1
    return made


@pytest.mark.parametrize("pair", [socket_pair, pipe_pair, stream_pair])
@pytest.mark.parametrize("compress", ["off", "3"])
async def test_only_changes_cross_the_link(node_dir: Path, pair: MakePair, compress: str) -> None:
    rounds = changing(4, 3000, 100)
    with open_session(node_dir) as session:
        run = Rounds(session, compress, splices=pair is not stream_pair)
        await run.run(rounds, pair=pair)
        assert run.source.checkpoint["pages-1.img"] == joined(rounds[-1][0])
        assert run.sent == [3000, 100, 100, 100]
        limit = 3300 * PAGE_SIZE + 400_000
        assert run.source.channel.bytes_sent < (limit if compress == "off" else limit / 10)


async def test_cuts_of_the_link_change_nothing(node_dir: Path) -> None:
    rounds = changing(3, 2000, 50)
    with open_session(node_dir) as session:
        run = Rounds(session)
        await run.run(rounds, cuts=[(3_000_000, None), (1_000_000, 50), (2_000_000, 10)])
        assert run.source.checkpoint["pages-1.img"] == joined(rounds[-1][0])
        assert run.source.channel.reconnects == 3


async def test_memory_holds_one_checkpoint_and_a_round(node_dir: Path) -> None:
    """Every page of every round is new, and all goes into the memory of two."""
    rounds = [[range(1000 * one + 1, 1000 * one + 1001)] for one in range(6)]
    budget = MemoryBudget(2 * 1000 * PAGE_SIZE + 100_000)
    with open_session(node_dir, budget=budget) as session:
        run = Rounds(session)
        await run.run(rounds)
        assert run.source.checkpoint["pages-1.img"] == joined(rounds[-1][0])
    assert budget.used == 0


async def test_zeroes_cost_nothing(node_dir: Path) -> None:
    budget = MemoryBudget(1 << 20)
    with open_session(node_dir, budget=budget) as session:
        run = Rounds(session)
        await run.run([[[0] * 20_000]])
        assert run.source.checkpoint["pages-1.img"] == bytes(20_000 * PAGE_SIZE)
        assert run.sent == [0]
        assert run.source.channel.bytes_sent < 20_000


@pytest.mark.parametrize("digest", [False, True])
async def test_one_dump_without_rounds(node_dir: Path, digest: bool) -> None:
    """Its other images go as ever. A page image is whole pages."""
    images = {name: data for name, data in IMAGES.items() if not name.startswith("pages-")}
    images |= {"pages-1.img": joined([1, 2, 1, 0] * 500), "pages-2.img": joined([2, 9, 3, 3]), "pages-3.img": b""}
    with open_session(node_dir) as session:
        source = Source(session, "off", dedup=True)
        source.sender._digest_pages = digest
        assert await source.run(images) == (images, 0)
        assert source.sender.pages is not None
        assert (source.sender.pages.sent, source.sender.pages.zero) == (4, 500)
        assert source.sender.totals() == (len(images), sum(map(len, images.values())))


class PatchSecond(Rewriter):
    """Rewrites the second page of pages-1.img."""

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        assert dump.store.read("pages-1.img", PAGE_SIZE, PAGE_SIZE) == joined([5])
        dump.store.patch("pages-1.img", PAGE_SIZE + 10, b"patched")
        return {}


async def test_a_patch_changes_one_place(node_dir: Path) -> None:
    numbers = [5, 5, 5, 0, 5]
    with open_session(node_dir) as session:
        source = Source(session, "off", PatchSecond(), dedup=True)
        sent, _ = await source.run({"pages-1.img": joined(numbers), "pages-2.img": joined([5])})
    expected = bytearray(joined(numbers))
    expected[PAGE_SIZE + 10 : PAGE_SIZE + 17] = b"patched"
    assert sent == {"pages-1.img": bytes(expected), "pages-2.img": joined([5])}


async def test_what_is_left_of_a_page_is_dropped(node_dir: Path) -> None:
    """CRIU died in the middle of it."""
    with open_session(node_dir) as session:
        source = Source(session, "off", dedup=True)
        sent, _ = await source.run({"pages-1.img": joined([1, 2]) + b"half"})
    assert sent == {"pages-1.img": joined([1, 2])}


async def test_an_archive_is_composed_too(node_dir: Path) -> None:
    out = archive(node_dir / "parked", "mine")
    sender = ImageSender(out, Chain(()), Compression("off"), dedup=True)
    images = {"pages-1.img": joined([1, 1, 0, 2] * 300), "pages-2.img": joined([2, 3]), "inventory.img": b"i" * 10}
    for name, data in images.items():
        pipe = Pipe()
        async with flat_nursery() as nursery:
            nursery.start_soon(_write, pipe, data)
            await sender.send_from_pipe(name, pipe.reader)
        pipe.close()
    await out.send(ImagesComplete(*sender.totals()))
    await out.finish()
    out.close()
    assert (node_dir / "parked").stat().st_size < 60_000
    read = Archive(node_dir / "parked")
    with open_session(node_dir) as session:
        await read.hello()
        await read.load(session)
        assert session.state is SessionState.COMMITTED
        assert {image.name: image.read(0, image.size) for image in session.store} == images
    read.close()


async def _write(pipe: Pipe, data: bytes) -> None:
    await write_all(pipe.writer, data)
    pipe.close_writer()


async def test_the_process_need_not_wait_for_the_link(node_dir: Path) -> None:
    """With room for all of it, the pipe is empty before anything has been sent."""
    data, drained = random_bytes(40 << 20), trio.Event()
    with open_session(node_dir) as session:
        source = Source(session, "off", dedup=True)

        assert source.sender._dedup is not None
        source.sender._dedup.begin_round(0, ahead=1 << 40)

        async def send() -> None:
            pipe = Pipe()
            async with flat_nursery() as nursery:
                nursery.start_soon(_write, pipe, data)
                await source.sender.send_drained("pages-1.img", pipe.reader, drained.set)
            pipe.close()
            await source.finish()

        async def linked_later() -> None:
            await drained.wait()
            assert not source.channel.connected
            async with flat_nursery() as nursery:
                nursery.start_soon(session.run, 1e9)
                await connected(source.channel, session.source.channel, source.view, session)

        try:
            await while_connected(send, linked_later)
        finally:
            source.channel.close()
        assert source.checkpoint["pages-1.img"] == data


def test_numpy_that_cannot_be_loaded_is_told_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where libstdc++ is missing."""
    monkeypatch.delitem(sys.modules, "imgproxy.page_sender", raising=False)
    monkeypatch.setitem(sys.modules, "imgproxy.dedup", None)
    with pytest.raises(UsageError, match=r"^numpy cannot be loaded .* or say --no-dedup$"):
        ImageSender(MemoryOutgoing(), Chain(()), Compression("off"), dedup=True)
