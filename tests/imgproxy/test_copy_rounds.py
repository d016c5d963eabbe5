"""Whether copies pay, found out before anything is frozen; what is told of them, and how they end. With a fake CRIU."""

from pathlib import Path

import pytest
import structlog.testing
import trio

from imgnode.journal import Journal
from imgproxy import copy_rounds
from imgproxy.compression import Compression
from imgproxy.convergence import Convergence, RoundFigures
from imgproxy.copy_rounds import CopyRounds
from imgproxy.sender import ImageSender
from imgproxy.source import CacheView
from imgwire.messages import BeginRound, DropRound
from tests.playbook import MemoryOutgoing
from transform.chain import Chain

pytestmark = pytest.mark.t1


class Migration:
    """Copies of a process that there need not be."""

    def __init__(self, place: Path, criu: str = "/bin/false") -> None:
        self.out = MemoryOutgoing()
        self.sender = ImageSender(self.out, Chain([]), Compression("off"), dedup=True)
        images = place / "images"
        images.mkdir()
        journal = Journal(str(place), "0" * 32)
        self.rounds = CopyRounds(self.sender, trio.lowlevel.checkpoint, images, journal, criu, 4242, ["--shell-job"])
        self.shown: list[RoundFigures] = []

    async def copy(self) -> str:
        return await self.rounds.copy(Convergence(None, 3), CacheView(), lambda figures, _: self.shown.append(figures))

    @property
    def arranged(self) -> list[BeginRound | DropRound]:
        return [message for message in self.out.messages if isinstance(message, BeginRound | DropRound)]


async def test_a_link_faster_than_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copy_rounds, "_scan_rate", lambda: 1e3)
    one = Migration(tmp_path)
    reason = await one.rounds.reason_against(64 << 20)
    assert reason is not None and "could not make the last freeze shorter than one dump" in reason
    assert one.arranged == [BeginRound(1), DropRound(1)]
    assert one.sender.size == 0, "the trial is no image"
    assert one.sender.totals() == (0, 0)


async def test_a_link_slower_than_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What takes long enough is tried once."""
    monkeypatch.setattr(copy_rounds, "_scan_rate", lambda: 1e15)
    monkeypatch.setattr(copy_rounds, "TRIAL", 0.0)
    one = Migration(tmp_path)
    assert await one.rounds.reason_against(64 << 20) is None
    assert sum(map(len, one.out.images.values())) == copy_rounds.FIRST_TRIAL


async def test_a_trial_is_no_larger_than_the_process(tmp_path: Path) -> None:
    one = Migration(tmp_path)
    await one.rounds.reason_against(2 << 20)
    assert max(map(len, one.out.images.values())) <= 4 << 20


async def test_no_room_for_a_copy(tmp_path: Path) -> None:
    reason = await Migration(tmp_path).rounds.reason_against(1 << 50)
    assert reason is not None and reason.startswith("a copy of the process needs 1073741824 MiB here")


@pytest.mark.parametrize("criu", ["/bin/false", "/bin/true"])
async def test_a_copy_that_fails_is_the_last(tmp_path: Path, criu: str) -> None:
    """Also a CRIU that ends well and has brought nothing."""
    one = Migration(tmp_path, criu)
    with structlog.testing.capture_logs() as log:
        assert await one.copy() == "a copy failed"
    assert one.shown == []
    assert one.arranged == [BeginRound(1), DropRound(1)]
    assert [line["event"] for line in log] == ["a copy failed: everything is dumped at once"]
