"""Rounds that somebody types: who is let in, what counts as gone well, when the next may come.

The CRIUs are processes of the test's own that only exist; what the kernel would show of them is given.
"""

import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from imgnode import proc
from imgnode.control_client import Request
from imgnode.criu_run import CriuRun
from imgnode.nursery import flat_nursery
from imgproxy.compression import Compression
from imgproxy.ingest import by_hand
from imgproxy.ingest.by_hand import RoundsByHand
from imgproxy.ingest.rounds import RoundsIngest
from imgproxy.sender import ImageSender
from imgwire.errors import RemoteProtocolError
from imgwire.messages import BeginRound, DropRound
from tests.fake_rounds import PAGE, READ_MODE, SPLICE_MODE, RoundClient, inventory, value
from tests.playbook import MemoryOutgoing
from transform.chain import Chain

pytestmark = pytest.mark.t1

PID, BASE = 7, 0x10000000


@dataclass
class Stand:
    """The ingest, whose CRIUs are those that a test has announced to the kernel."""

    place: Path
    out: MemoryOutgoing = field(default_factory=MemoryOutgoing)
    comes: CriuRun | str = "nobody"
    hooked: set[int] = field(default_factory=set)
    held: list[int] = field(default_factory=list)
    log: list[structlog.typing.EventDict] = field(default_factory=list)
    listener: trio.socket.SocketType | None = None

    def __post_init__(self) -> None:
        sender = ImageSender(self.out, Chain([]), Compression("off"))
        rounds = RoundsIngest(sender, lambda **_: Chain([]), trio.lowlevel.checkpoint, self.place)
        self.ingest = RoundsByHand(rounds, self.place)

    async def ask(self, *, last: bool = False) -> list[str]:
        """As `imgproxy rounds` does."""
        answers: list[Request] = []

        async def say(answer: Request) -> None:
            answers.append(answer)
            await trio.lowlevel.checkpoint()

        await self.ingest.handle(_nobody_else, {"op": "rounds", "last": last}, say, trio.sleep_forever)
        (answer,) = answers
        options: list[str] = answer["options"]
        return options

    @asynccontextmanager
    async def criu(self, options: list[str], *words: str) -> AsyncIterator["Typed"]:
        """One that is typed with these options, and ends with the block."""
        images = Path(value(options, "-D") or "")
        with _process() as process:
            if parent := value(options, "--prev-images-dir"):
                (images / "parent").symlink_to(parent)
            status = images.stat()
            self.comes = CriuRun(
                proc.identify(process.pid),
                ("criu", *words, *options),
                images,
                frozenset({(status.st_dev, status.st_ino)}),
                None,
            )
            with trio.socket.socket() as sock:
                await sock.connect(("127.0.0.1", int(value(options, "--port") or "")))
                yield Typed(RoundClient(sock), process, images)
            process.kill()
            process.wait()
        await trio.testing.wait_all_tasks_blocked(0.02)

    async def pre_dump(self, *, mode: int = SPLICE_MODE, stats: bool = True, end: bool = True) -> None:
        """One more, that may go wrong."""
        async with self.criu(await self.ask(), "pre-dump") as typed:
            await typed.brings(end=end)
            typed.leaves(mode, stats=stats)

    @property
    def dropped(self) -> list[int]:
        return [message.round for message in self.out.messages if isinstance(message, DropRound)]

    def said(self, event: str) -> list[structlog.typing.EventDict]:
        return [line for line in self.log if event in line["event"]]


@dataclass
class Typed:
    """A CRIU at work."""

    client: RoundClient
    process: "subprocess.Popen[bytes]"
    images: Path

    async def brings(self, *, end: bool = True) -> None:
        await self.client.asks(PID)
        known = await self.client.opens(PID)
        if known:
            await self.client.refers(PID, BASE, 1)
        await self.client.brings(PID, BASE + PAGE, bytes(PAGE))
        if end:
            assert await self.client.closes() == 0

    def leaves(self, mode: int = SPLICE_MODE, *, stats: bool = True) -> None:
        (self.images / "inventory.img").write_bytes(inventory(mode))
        if stats:
            (self.images / "stats-dump").write_bytes(b"statistics")


@contextmanager
def _process() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


async def _nobody_else(*_: object) -> None:
    raise AssertionError("it is for us")


@pytest.fixture
async def stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Stand]:
    one = Stand(tmp_path)
    monkeypatch.setattr(by_hand, "_who", lambda _sock: one.comes)
    monkeypatch.setattr(CriuRun, "holds", lambda _run: one.held)
    with structlog.testing.capture_logs() as log:
        one.log = log
        async with flat_nursery() as nursery, one.ingest.listening(tmp_path) as listener:
            nursery.start_soon(one.ingest.accept, listener, one.hooked.__contains__)
            yield one
            nursery.cancel_scope.cancel()


async def test_what_is_printed(stand: Stand) -> None:
    first = await stand.ask()
    port = value(first, "--port")
    pages = ["--track-mem", "--page-server", "--address", "127.0.0.1", "--port", port]
    assert first == ["-D", str(stand.place / "1"), *pages]
    assert await stand.ask() == first
    assert await stand.ask(last=True) == [*first, "--action-script", str(stand.place / "imgproxy-hook")]
    await stand.pre_dump()
    assert await stand.ask() == ["-D", str(stand.place / "2"), "--prev-images-dir", "../1", *pages]


async def test_a_round_builds_on_the_one_before(stand: Stand) -> None:
    await stand.pre_dump()
    async with stand.criu(await stand.ask(), "pre-dump") as typed:
        assert await typed.client.asks(PID)
        assert not await typed.client.asks(8)
        await typed.brings()
        typed.leaves()
    assert not stand.dropped
    assert [line["event"] for line in stand.said("is at the cache")] == [
        "round 1 is at the cache",
        "round 2 is at the cache",
    ]


async def test_a_round_that_does_not_know_its_parent_carries_all(stand: Stand) -> None:
    await stand.pre_dump()
    options = [word for word in await stand.ask() if word not in ("--prev-images-dir", "../1")]
    async with stand.criu(options, "pre-dump") as typed:
        assert not await typed.client.asks(PID), "CRIU would fail: it has no inventory to compare with"
        await typed.brings()
        typed.leaves()
    assert "criu runs without --prev-images-dir ../1" in stand.said("everything is sent again")[0]["event"]
    assert value(await stand.ask(), "--prev-images-dir") == "../2", "it is as good as any"


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"stats": False}, "it did not end well"),
        ({"end": False}, "criu left without CLOSE"),
        ({"mode": READ_MODE}, "--pre-dump-mode read"),
    ],
)
async def test_a_round_that_does_not_count(stand: Stand, how: Any, reason: str) -> None:
    await stand.pre_dump()
    await stand.pre_dump(**how)
    assert stand.dropped == [2]
    (line,) = stand.said("was dropped")
    assert line["event"] == "round 2 was dropped; the process runs on" and reason in line["reason"]
    assert value(await stand.ask(), "--prev-images-dir") is None
    async with stand.criu(await stand.ask(), "pre-dump") as typed:
        assert not await typed.client.asks(PID)


@pytest.mark.parametrize("content", [None, b"", b"junk" * 10, inventory(SPLICE_MODE)[:-1]])
async def test_an_inventory_that_cannot_be_read(stand: Stand, content: bytes | None) -> None:
    """The next CRIU would want it."""
    async with stand.criu(await stand.ask(), "pre-dump") as typed:
        await typed.brings()
        typed.leaves()
        (typed.images / "inventory.img").unlink()
        if content is not None:
            (typed.images / "inventory.img").write_bytes(content)
    assert "no readable inventory.img" in stand.said("was dropped")[0]["reason"]


async def test_it_counts_when_criu_has_ended(stand: Stand) -> None:
    """What it has said does not do: it may fail yet."""
    asked = trio.Event()

    async def ask() -> None:
        await stand.ask()
        asked.set()

    async with flat_nursery() as nursery:
        async with stand.criu(await stand.ask(), "pre-dump") as typed:
            await typed.brings()
            typed.leaves()
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not asked.is_set() and not stand.said("is at the cache")
        await asked.wait()
    assert stand.said("is at the cache")


async def test_who_asks_may_go(stand: Stand) -> None:
    async with stand.criu(await stand.ask(), "pre-dump") as typed:
        await typed.client.asks(PID)
        await stand.ingest.handle(_nobody_else, {"op": "rounds"}, _nobody_else, trio.lowlevel.checkpoint)


async def test_other_requests_are_others(stand: Stand) -> None:
    seen: list[Request] = []

    async def otherwise(request: Request, *_: object) -> None:
        seen.append(request)
        await trio.lowlevel.checkpoint()

    await stand.ingest.handle(otherwise, {"op": "dump-begins"}, _nobody_else, trio.sleep_forever)
    assert seen == [{"op": "dump-begins"}]


# ---- who is turned away ----


async def _assert_turned_away(stand: Stand, options: list[str], reason: str, *words: str) -> None:
    async with stand.criu(options, *words) as typed:
        with pytest.raises((EOFError, ConnectionResetError, BrokenPipeError, trio.BrokenResourceError)):
            await typed.client.asks(PID)
    assert reason in stand.said("turned away")[-1]["reason"]
    assert not stand.dropped


@pytest.mark.parametrize(
    ("words", "more", "reason"),
    [
        (["dump"], [], "dumps without --action-script"),
        (["pre-dump"], ["--pre-dump-mode", "read"], "--pre-dump-mode read"),
        (["pre-dump"], ["--pre-dump-mode=read"], "--pre-dump-mode read"),
    ],
)
async def test_one_that_would_do_harm(stand: Stand, words: list[str], more: list[str], reason: str) -> None:
    await stand.pre_dump()
    await _assert_turned_away(stand, [*await stand.ask(), *more], reason, *words)
    assert value(await stand.ask(), "--prev-images-dir") == "../1", "it came to nothing"


async def test_one_with_another_directory(stand: Stand) -> None:
    used = await stand.ask()
    await stand.pre_dump()
    reason = f"has not the -D of this round: let `imgproxy rounds -D {stand.place}` print its options each time"
    await _assert_turned_away(stand, used, reason, "pre-dump")
    await stand.ask()
    await _assert_turned_away(stand, used, reason, "pre-dump")


async def test_one_while_another_is_at_work(stand: Stand) -> None:
    options = await stand.ask()
    async with stand.criu(options, "pre-dump") as typed:
        await typed.client.asks(PID)
        await _assert_turned_away(stand, options, "one after the other", "pre-dump")
        await typed.brings()
        typed.leaves()
    assert stand.said("round 1 is at the cache")


@pytest.mark.parametrize("reason", ["it belongs to uid 65534", "it has gone"])
async def test_one_that_is_no_criu(stand: Stand, reason: str) -> None:
    options = await stand.ask()
    stand.comes = reason
    with trio.socket.socket() as sock:
        await sock.connect(("127.0.0.1", int(value(options, "--port") or "")))
        assert await sock.recv(1) == b""
    assert stand.said("turned away")[0]["reason"] == reason


# ---- a dump ----


async def test_a_dump_that_leaves_its_tasks_running_is_a_round(stand: Stand) -> None:
    """Though it holds them to the end, and our action script has not announced it."""
    await stand.pre_dump()
    async with stand.criu(await stand.ask(), "dump", "--leave-running") as typed:
        stand.held = [PID]
        await typed.brings()
        typed.leaves()
    assert stand.said("round 2 is at the cache") and not stand.dropped
    stand.held = []
    assert value(await stand.ask(), "--prev-images-dir") == "../2"


async def test_and_as_a_value_that_says_nothing(stand: Stand) -> None:
    await _assert_turned_away(
        stand, [*await stand.ask(), "-o", "--leave-running"], "dumps without --action-script", "dump"
    )


async def test_a_dump_that_nobody_announced_gets_no_answer(stand: Stand) -> None:
    """Its command line says nothing, as by RPC; but at the end it holds the process."""
    await stand.pre_dump()
    async with stand.criu(await stand.ask(), "swrk", "3") as typed:
        stand.held = [PID]
        await typed.client.opens(PID)
        with pytest.raises((EOFError, ConnectionResetError)):
            await typed.client.closes()
    (line,) = stand.said("was dropped")
    assert f"--action-script {stand.place}/imgproxy-hook" in line["reason"]
    assert stand.dropped == [2]


@asynccontextmanager
async def _dump(stand: Stand) -> AsyncIterator[Typed]:
    """One that our action script has announced."""
    async with stand.criu(await stand.ask(last=True), "dump") as typed:
        stand.held = [PID]
        stand.hooked.add(typed.process.pid)
        yield typed


async def test_a_dump_is_handed_over(stand: Stand) -> None:
    await stand.pre_dump()
    async with _dump(stand) as typed:
        await typed.brings()
        (typed.images / "core-7.img").write_bytes(b"core")
        typed.leaves()
        assert stand.ingest.started_at is not None and not stand.ingest.complete
        await stand.ingest.finish()
        assert stand.ingest.complete
        assert stand.out.images["core-7.img"] == b"core"
    assert not stand.dropped
    assert [message for message in stand.out.messages if isinstance(message, BeginRound)][-1].round == 2
    assert stand.ingest.criu == typed.process.pid


async def test_a_dump_that_ends_before_it_comes_to_that(stand: Stand) -> None:
    """Its tasks run on, and the rounds go on."""
    async with _dump(stand) as typed:
        await typed.brings()
        typed.leaves(stats=False)
    assert stand.dropped == [1]
    assert "before its post-dump script" in stand.said("was dropped")[0]["reason"]
    assert stand.ingest.started_at is None
    with pytest.raises(RemoteProtocolError, match="has not brought its pages"):
        await stand.ingest.finish()


async def test_a_dump_to_a_disk(stand: Stand) -> None:
    """With our action script, and behind a pre-dump that went well, but its pages are elsewhere."""
    await stand.pre_dump()
    with pytest.raises(RemoteProtocolError, match="has not brought its pages"):
        await stand.ingest.finish()


async def test_a_dump_without_track_mem(stand: Stand) -> None:
    await stand.pre_dump()
    options = [word for word in await stand.ask(last=True) if word != "--track-mem"]
    async with stand.criu(options, "dump") as typed:
        stand.hooked.add(typed.process.pid)
        await typed.client.opens(PID)
    assert "criu runs without --track-mem" in stand.said("everything is sent again")[0]["event"]


# ---- what is left ----


async def test_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Stand(tmp_path)
    monkeypatch.setattr(by_hand, "_who", lambda _sock: one.comes)
    monkeypatch.setattr(CriuRun, "holds", lambda _run: [])
    async with one.ingest.listening(tmp_path) as listener, flat_nursery() as nursery:
        nursery.start_soon(one.ingest.accept, listener, one.hooked.__contains__)
        await one.pre_dump()
        async with one.criu(await one.ask(), "pre-dump") as typed:
            await typed.brings()
            typed.leaves()
            (typed.images / "my.log").write_text("log")
        await one.ask()
        nursery.cancel_scope.cancel()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["2", "2/my.log"]
