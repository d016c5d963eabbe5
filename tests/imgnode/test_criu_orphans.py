"""What is ended after a CRIU that was killed, and what is not: real processes of one process group."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import trio

from imgnode.criu_orphans import bury, end_orphans, known

pytestmark = pytest.mark.t1

WORDS = ("dump", "-D", "/images")

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes with these words in their command lines, in the group of that leader."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str, leader: int = 0) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-S", "-c", "import signal; signal.pause()", *words]
        started.append(subprocess.Popen(command, process_group=leader))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.wait()


def test_its_copies_are_ended(start: Start) -> None:
    criu = start(*WORDS)
    copy, script = start(*WORDS, leader=criu.pid), start("post-dump", leader=criu.pid)
    elsewhere = start(*WORDS)
    criu.kill()
    criu.wait()
    end_orphans(criu.pid, {"dump", "/images"}.issubset)
    assert copy.wait(10) == -signal.SIGKILL
    assert script.poll() is None and elsewhere.poll() is None


def test_one_that_holds_tasks_is_left_alone(start: Start) -> None:
    """As when not CRIU was killed, but who had started it."""
    task = start("task")
    pipe = subprocess.PIPE
    criu = subprocess.Popen(["strace", "-p", str(task.pid)], stderr=pipe, stdout=pipe, start_new_session=True)
    assert criu.stderr and b"attached" in criu.stderr.readline()
    end_orphans(criu.pid, {"-p", str(task.pid)}.issubset)
    assert criu.poll() is None
    criu.terminate()
    criu.communicate()


async def test_when_it_ends(start: Start) -> None:
    criu = start(*WORDS)
    copy, caller = start(*WORDS, leader=criu.pid), start(*WORDS, "then", leader=criu.pid)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bury, known(criu.pid))
        await trio.testing.wait_all_tasks_blocked()
        assert copy.poll() is None
        criu.kill()
    criu.wait()
    assert copy.wait(10) == -signal.SIGKILL
    assert caller.poll() is None, "not a copy"
