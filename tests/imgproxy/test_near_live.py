"""The rounds of one migration: how CRIU is run for each, what is told of them, and how they end. With a fake CRIU."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import structlog
import trio

from imgnode.nursery import flat_nursery
from imgproxy import near_live
from imgproxy.compression import Compression
from imgproxy.convergence import Convergence, RoundFigures
from imgproxy.handover import RestoreFailed
from imgproxy.ingest.rounds import RoundsIngest
from imgproxy.near_live import Rounds
from imgproxy.sender import ImageSender
from imgproxy.source import CacheView, LinkLost, SessionAborted
from imgwire.messages import BeginRound, DropRound, State
from tests.fake_rounds import planned, runs, told, value
from tests.nodes import until
from tests.playbook import MemoryOutgoing
from transform.chain import Chain

pytestmark = pytest.mark.t1

PID = 4242
NOTHING = Path("/bin/true")  #: the CRIU for what is no pre-dump


class Migration:
    """Rounds of a process that there need not be."""

    def __init__(self, place: Path, *plan: str, command: Path | None = None) -> None:
        self.place, self.out, self.view = place, MemoryOutgoing(), CacheView()
        images = place / "images"
        images.mkdir()
        sender = ImageSender(self.out, Chain([]), Compression("off"))
        self.ingest = RoundsIngest(sender, lambda **_: Chain([]), trio.lowlevel.checkpoint, images)
        self.rounds = Rounds(
            self.ingest, str(command or planned(place, NOTHING, *plan)), PID, ["--shell-job", "--timeout=5"]
        )
        self.shown: list[tuple[RoundFigures, float | None]] = []

    async def pre_dump(self, count: int) -> str:
        """So many rounds; why there are no more."""
        convergence = Convergence(None, count)
        return await self.rounds.pre_dump(convergence, self.view, lambda *figures: self.shown.append(figures))

    @property
    def arranged(self) -> list[BeginRound | DropRound]:
        return [message for message in self.out.messages if isinstance(message, BeginRound | DropRound)]


Make = Callable[..., Awaitable[Migration]]


@pytest.fixture
async def make(tmp_path: Path) -> AsyncIterator[Make]:
    """Makes a migration; nothing watches its directories when the test is over."""
    async with AsyncExitStack() as ended:

        async def start(*plan: str, command: Path | None = None) -> Migration:
            one = Migration(tmp_path, *plan, command=command)
            await ended.enter_async_context(one.ingest.listening(tmp_path))
            return one

        yield start


async def test_each_round_has_a_criu_of_its_own(tmp_path: Path, make: Make) -> None:
    one = await make("good")
    assert await one.pre_dump(2) == "2 rounds are enough"
    assert await one.rounds.dump("-o", "/elsewhere/dump.log") == 0
    first, second, last = runs(tmp_path, "pre-dump", "dump")
    images = tmp_path / "images"
    fd = value(first, "--ps-socket")
    assert fd is not None
    pages = ["--track-mem", "--page-server", "--ps-socket", fd]
    assert first == ["pre-dump", "-t", "4242", "-D", f"{images}/1", *pages, "-o", "pre-dump.log", "--timeout=5"]
    assert (value(second, "-D"), value(second, "--prev-images-dir")) == (f"{images}/2", "../1")
    assert last[:3] == ["dump", "-t", "4242"] and "--ps-socket" in last
    assert last[-4:] == ["-o", "/elsewhere/dump.log", "--shell-job", "--timeout=5"]
    assert (value(last, "-D"), value(last, "--prev-images-dir")) == (f"{images}/3", "../2")
    assert one.arranged == [BeginRound(number) for number in (1, 2, 3)]


async def test_what_is_told_of_a_round(make: Make) -> None:
    one = await make("good")
    await one.pre_dump(2)
    (first, none), (second, predicted) = one.shown
    assert first.began < first.ended <= second.began < second.ended
    assert first.size == second.size == sum(map(len, one.out.images.values())) > 0
    assert none is None and predicted is not None and predicted > 0


@pytest.mark.parametrize("how", ["fails", "silent", "dies"])
async def test_a_pre_dump_that_fails_is_the_last(tmp_path: Path, make: Make, how: str) -> None:
    one = await make("good", how, "good")
    with structlog.testing.capture_logs() as log:
        assert await one.pre_dump(5) == "a pre-dump failed"
    assert len(one.shown) == 1
    assert one.arranged == [BeginRound(1), BeginRound(2), DropRound(2)]
    reasons = {"fails": "exit code 1", "silent": "not all of its pages came", "dies": "exit code -9"}
    (warning,) = [line for line in log if line["event"].startswith("a pre-dump failed")]
    assert warning["reason"] == reasons[how]
    assert await one.rounds.dump() == 0
    (dump,) = runs(tmp_path, "dump")
    assert value(dump, "--prev-images-dir") is None, "it refers to nothing"


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        ("aborted", SessionAborted, "no room"),
        ("lost", LinkLost, "no link"),
        ("restore-failed", RestoreFailed, "criu restore there failed, so the process stays here: killed"),
    ],
)
async def test_a_destination_that_is_gone_ends_it_at_once(
    tmp_path: Path, make: Make, end: str, error: type[Exception], message: str
) -> None:
    one = await make("holds")

    async def give_up() -> None:
        await until(lambda: told(tmp_path, "half-way"), "the pre-dump")
        if end == "lost":
            one.view.lose("no link")
        else:
            one.view.on_message(State(end, message.rpartition(": ")[2]))

    began = trio.current_time()
    with pytest.raises(error, match=f"^{message}$"):
        async with flat_nursery() as nursery:
            nursery.start_soon(give_up)
            await one.pre_dump(3)
    assert trio.current_time() - began < near_live.PATIENCE
    assert told(tmp_path, "let-go"), "it was waited for: it may have held the process"


async def test_a_criu_that_cannot_be_started(tmp_path: Path, make: Make) -> None:
    one = await make(command=tmp_path / "missing")
    with pytest.raises(FileNotFoundError):
        await one.pre_dump(1)


async def test_which_is_under_way(make: Make) -> None:
    """For whoever watches."""
    ingest = (await make("good")).ingest
    seen = []
    for dump in (False, False, True):
        ingest.prepare()
        await ingest.begin(dump=dump)
        seen.append(ingest.pre_dump)
        await ingest.end(good=False)
        assert ingest.pre_dump == 0
    assert seen == [1, 2, 0]
