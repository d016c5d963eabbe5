"""What can be seen of a CRIU that somebody else started; a process here that behaves like one."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest
import trio
import trio.testing

from imgnode.criu_run import STATS, CriuRun, criu_behind
from imgnode.nursery import flat_nursery

pytestmark = pytest.mark.t1

#: Opens an images directory, goes to a work directory, connects, does what it is told by a line, ends.
LIKE_CRIU = """
import os, socket, sys
images = os.open(sys.argv[1], os.O_RDONLY)
os.chdir(sys.argv[2])
sock = socket.socket(fileno=int(sys.argv[3]))
print("up", flush=True)
for line in sys.stdin:
    exec(line)
    print("done", flush=True)
"""


class Stand:
    """Such a process, and a connection to it."""

    def __init__(self, place: Path, words: tuple[str, ...]) -> None:
        self.images, self.work = place / "1", place / "work"
        self.images.mkdir()
        self.work.mkdir()
        self.ours, theirs = socket.socketpair()
        self.inode = os.fstat(theirs.fileno()).st_ino
        with theirs:
            fd = str(theirs.fileno())
            self.process = subprocess.Popen(
                [sys.executable, "-S", "-c", LIKE_CRIU, self.images, self.work, fd, *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                text=True,
            )
        assert self._out.readline() == "up\n"

    @property
    def _out(self) -> IO[str]:
        assert self.process.stdout
        return self.process.stdout

    def do(self, line: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        assert self._out.readline() == "done\n"

    def run(self) -> CriuRun:
        found = criu_behind(self.inode)
        assert found is not None
        return found

    def end(self) -> None:
        with suppress(BrokenPipeError):
            self.process.communicate()
        self.ours.close()


@contextmanager
def _stand(place: Path, *words: str) -> Iterator[Stand]:
    one = Stand(place, words)
    try:
        yield one
    finally:
        one.end()


@pytest.fixture
def stand(tmp_path: Path) -> Iterator[Stand]:
    with _stand(tmp_path) as one:
        yield one


def test_who_and_where(stand: Stand, tmp_path: Path) -> None:
    run = stand.run()
    assert run.pid == stand.process.pid
    assert run.work_dir == stand.work
    assert run.words[:3] == (sys.executable, "-S", "-c")
    assert run.works_in(stand.images)
    assert not run.works_in(tmp_path)


def test_the_parent_of_those_that_hold_the_socket_is_meant(stand: Stand) -> None:
    stand.do("child = __import__('subprocess').Popen(['sleep', '1000'], pass_fds=[sock.fileno()])")
    assert stand.run().pid == stand.process.pid
    stand.do("child.kill(); child.wait()")


def test_nobody_holds_it(stand: Stand) -> None:
    assert criu_behind(0) is None
    stand.end()
    assert criu_behind(stand.inode) is None


async def test_its_end(stand: Stand) -> None:
    run, ended = stand.run(), trio.Event()

    async def wait() -> None:
        await run.ended()
        ended.set()

    async with flat_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert not ended.is_set()
        stand.process.kill()
    await run.ended()


def test_its_success_shows_in_its_work_directory(stand: Stand) -> None:
    run = stand.run()
    assert not run.ended_well()
    (stand.images / STATS).write_text("elsewhere")
    assert not run.ended_well()
    stand.do(f"open({STATS!r}, 'w').write('statistics')")
    assert run.ended_well()
    again = stand.run()
    assert not again.ended_well(), "those were there before"
    stand.do("import time, os")
    stand.do(f"f = open({STATS!r}, 'w'); f.write('statistics'); f.close(); os.utime({STATS!r}, ns=(1, 1))")
    assert again.ended_well(), "written again, of whatever age"


def test_whom_it_holds(stand: Stand) -> None:
    run = stand.run()
    assert run.holds() == []
    victim = subprocess.Popen(["sleep", "1000"])
    attach = f"import ctypes; assert ctypes.CDLL(None).ptrace(0x4206, {victim.pid}, 0, 0) == 0"  # PTRACE_SEIZE
    stand.do(attach)
    assert run.holds() == [victim.pid]
    stand.end()  # a tracer that lives keeps a dead one from its parent
    victim.kill()
    victim.wait()


@pytest.mark.parametrize(
    ("words", "dumps"),
    [
        (["dump", "-t", "5"], True),
        (["-t", "5", "dump"], True),
        (["pre-dump", "-t", "5"], False),
        (["pre-dump", "-D", "dump"], False),
        (["dump", "-W", "pre-dump"], False),
        (["swrk", "3"], False),
    ],
)
def test_what_its_command_line_says(tmp_path: Path, words: list[str], dumps: bool) -> None:
    with _stand(tmp_path, *words) as stand:
        assert stand.run().says_dump is dumps


@pytest.mark.parametrize(
    ("words", "leaves"),
    [
        (["dump", "--leave-running", "-t", "5"], True),
        (["dump", "-t", "5", "--track-mem", "-R"], True),
        (["-t", "5", "dump"], False),
        (["pre-dump", "--leave-running"], False),
        (["dump", "-o", "--leave-running"], False),
        (["dump", "-o", "-R", "-t", "5"], False),
        (["dump", "-t", "5", "--", "--leave-running"], False),
        (["swrk", "3"], False),
    ],
)
def test_whether_it_surely_lets_its_tasks_run_on(tmp_path: Path, words: list[str], leaves: bool) -> None:
    with _stand(tmp_path, *words) as stand:
        assert stand.run().leaves_running is leaves


def test_its_options(tmp_path: Path) -> None:
    with _stand(tmp_path, "pre-dump", "--pre-dump-mode=splice", "--pre-dump-mode", "read") as stand:
        assert stand.run().option("pre-dump-mode") == "read", "the last one counts"
        assert stand.run().option("port") is None


@pytest.mark.parametrize("option", [["-o", "my.log"], ["--log-file=my.log"], ["-omy.log"]])
def test_its_log_says_why(tmp_path: Path, option: list[str]) -> None:
    with _stand(tmp_path, *option) as stand:
        run = stand.run()
        assert run.cause() is None
        (stand.work / "my.log").write_text("(00.01) Error (criu/mem.c:1): no memory\n(00.02) Error (x.c:1): failed\n")
        assert run.cause() == "no memory"


def test_no_log_is_known(stand: Stand) -> None:
    assert stand.run().cause() is None
