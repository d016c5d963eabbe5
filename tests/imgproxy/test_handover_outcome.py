"""What became of a hand-over whose action script is dead, by its journal."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgnode import proc
from imgnode.journal import Journal
from imgproxy import handover
from imgproxy.handover import outcome
from imgproxy.hook import DECIDING, KILLING

pytestmark = pytest.mark.t1

IDENTITY = "0123456789abcdef" * 2


@pytest.fixture
def tree() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Two processes, stopped."""
    both = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
    for one in both:
        os.kill(one.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, one.pid, os.WSTOPPED)
    yield both
    for one in both:
        one.kill()
        one.wait()


@pytest.fixture
def journal(tmp_path: Path, tree: list["subprocess.Popen[bytes]"]) -> Journal:
    """As the script leaves it that has begun to stop them, and is dead."""
    script = subprocess.Popen(["sleep", "1000"])
    hook = proc.identify(script.pid)
    script.kill()
    script.wait()
    journal = Journal(str(tmp_path), IDENTITY)
    journal.write("opened", name="job")
    journal.write(DECIDING, tree=[list(proc.identify(one.pid)) for one in tree], hook=list(hook))
    return journal


def test_stopped_they_go_on(journal: Journal, tree: list["subprocess.Popen[bytes]"]) -> None:
    assert not outcome(journal)
    assert journal.state == "aborted"
    for one in tree:
        os.waitid(os.P_PID, one.pid, os.WCONTINUED)


@pytest.mark.parametrize("dead", [0, 1, 2])
def test_written_down_that_they_are_killed_they_are(
    journal: Journal, tree: list["subprocess.Popen[bytes]"], dead: int
) -> None:
    journal.write(KILLING)
    for one in tree[:dead]:
        one.kill()
    assert outcome(journal)
    assert journal.state == "committed"
    assert [one.wait(10) for one in tree] == [-signal.SIGKILL] * 2


def test_one_that_died_meanwhile_gives_the_process_up(journal: Journal, tree: list["subprocess.Popen[bytes]"]) -> None:
    tree[1].kill()
    tree[1].wait()
    assert outcome(journal)
    assert tree[0].wait(10) == -signal.SIGKILL


def test_a_script_that_is_at_it_is_waited_for(
    journal: Journal, tree: list["subprocess.Popen[bytes]"], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "KILL_TIMEOUT", 0.1)
    journal.write(DECIDING, hook=list(proc.identify(os.getpid())))
    with pytest.raises(TimeoutError):
        outcome(journal)
    assert journal.state == DECIDING
    assert all(one.poll() is None for one in tree)


def test_nothing_was_begun(tmp_path: Path) -> None:
    journal = Journal(str(tmp_path), IDENTITY)
    journal.write("opened", name="job")
    assert not outcome(journal)
    assert journal.state == "aborted"
