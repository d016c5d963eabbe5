"""What a recovery does with a stopped tree, by what the cache says of its session."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgnode import proc
from imgnode.greeting import SessionRefused
from imgnode.journal import Journal
from imgproxy.hook import STOPPED
from imgproxy.recover_stopped import conclude, state_there
from imgwire.errors import UsageError
from imgwire.messages import Resolve
from imgwire.states import SessionState

pytestmark = pytest.mark.t1

IDENTITY = "0123456789abcdef" * 2


@pytest.fixture
def process() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that is stopped."""
    one = subprocess.Popen(["sleep", "1000"])
    os.kill(one.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, one.pid, os.WSTOPPED)
    yield one
    one.kill()
    one.wait()


@pytest.fixture
def journal(tmp_path: Path, process: "subprocess.Popen[bytes]") -> Journal:
    """That of a session in which it was stopped."""
    journal = Journal(str(tmp_path), IDENTITY)
    journal.write("opened", name="job")
    journal.write(STOPPED, tree=[list(proc.identify(process.pid))])
    return journal


def _goes_on(process: "subprocess.Popen[bytes]") -> bool:
    return os.waitid(os.P_PID, process.pid, os.WCONTINUED | os.WNOHANG) is not None


def test_given_up_there_it_runs_on_here(journal: Journal, process: "subprocess.Popen[bytes]") -> None:
    assert conclude(journal, SessionState.ABORTED, run_here=False) == (True, "the process runs on here")
    os.waitid(os.P_PID, process.pid, os.WCONTINUED)
    assert journal.state is None


def test_whole_there_it_is_killed_here(journal: Journal, process: "subprocess.Popen[bytes]") -> None:
    settled, told = conclude(journal, SessionState.RUNNING, run_here=False)
    assert settled and "at the destination" in told
    assert process.wait() == -signal.SIGKILL
    assert journal.state is None


@pytest.mark.parametrize("state", [SessionState.LOST, SessionState.FOLLOWING, SessionState.COMMITTED])
def test_else_it_stays_stopped(journal: Journal, process: "subprocess.Popen[bytes]", state: SessionState) -> None:
    settled, told = conclude(journal, state, run_here=False)
    assert not settled
    assert "stopped" in told
    assert not _goes_on(process)
    assert journal.state == STOPPED


def test_lost_there_a_person_may_let_it_run(journal: Journal, process: "subprocess.Popen[bytes]") -> None:
    assert conclude(journal, SessionState.LOST, run_here=True)[0]
    os.waitid(os.P_PID, process.pid, os.WCONTINUED)


@pytest.mark.parametrize("state", [SessionState.FOLLOWING, SessionState.COMMITTED])
def test_it_never_runs_twice(journal: Journal, process: "subprocess.Popen[bytes]", state: SessionState) -> None:
    with pytest.raises(UsageError, match="run twice"):
        conclude(journal, state, run_here=True)
    assert not _goes_on(process)


def test_with_nothing_left_here(journal: Journal, process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    assert conclude(journal, SessionState.FOLLOWING, run_here=False) == (
        False,
        "the processes here are gone, and the session is following at the cache",
    )


async def test_the_cache_is_asked_to_give_it_up_first(journal: Journal) -> None:
    asked: list[bool] = []

    async def following(resolve: Resolve) -> str:
        asked.append(resolve.commit)
        if not resolve.commit:
            raise SessionRefused("aborted after it was committed", final=True)
        return "following"

    async def waiting(resolve: Resolve) -> str:
        return "running" if resolve.commit else "aborted"

    assert await state_there(journal, following) is SessionState.FOLLOWING
    assert asked == [False, True]
    assert await state_there(journal, waiting) is SessionState.ABORTED
