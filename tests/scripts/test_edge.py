"""Proves the instrument: a process that adds to its pages one after the other finds nothing wrong whatever it does to
its memory, and finds each page that is not of the same moment as the rest.
"""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.nodes import until
from tests.programs import Programs
from tests.programs.edges import ARENA, Edge, assert_right, have_verified, parse
from tests.scripts.test_selfcheck import run_criu

pytestmark = pytest.mark.t2

PAGE, COUNTER = 4096, 2048
SIZE = 1 << 20
EVERYTHING = ("--threads=2", "--procs=3", f"--shared={SIZE}", f"--still={SIZE}", "--churn", "--forks")


class Running:
    """An `edge` that runs, started from here or restored; `procs` in its tree."""

    def __init__(self, process: "subprocess.Popen[bytes]", report: Path, procs: int) -> None:
        self.process, self.procs = process, procs
        self._report = report

    async def wait_for(self, condition: Callable[[list[Edge]], bool], what: str) -> list[Edge]:
        """Until what they say is so."""
        found: list[list[Edge]] = []

        def holds() -> bool:
            now = parse(self._report.read_text()) if self._report.exists() else None
            found.extend([now] if now and len(now) == self.procs and condition(now) else [])
            return bool(found)

        await until(holds, f"edge: {what}")
        return found[0]

    async def reports(self) -> list[Edge]:
        """What each process says."""
        return await self.wait_for(bool, "a report")

    async def verified(self) -> list[Edge]:
        """All memory verified from now, and what was found."""
        before = await self.reports()
        os.kill(before[0].pid, signal.SIGUSR1)
        return await self.wait_for(lambda now: have_verified(before, now), "its memory verified")

    async def finish(self) -> None:
        """By SIGTERM, with its farewell."""
        os.kill((await self.reports())[0].pid, signal.SIGTERM)
        assert_right(await self.wait_for(lambda now: all(one.state == "bye" for one in now), "its farewell"))

    def spoil(self, pid: int, address: int, fault: Callable[[bytes, bytes], bytes]) -> None:
        """Make another page of one, given that and the next."""
        with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(address)
            pages = memory.read(2 * PAGE)  # or one, at the end of a mapping
            memory.seek(address)
            memory.write(fault(pages[:PAGE], pages[PAGE:]))


@contextmanager
def running(programs: Programs, directory: Path, *options: str) -> Iterator[Running]:
    """Start one; whatever became of it, it is dead in the end."""
    report = directory / "report"
    words = [str(programs.edge), f"--size={SIZE}", f"--report={report}", *options]
    with ExitStack() as ending:
        nowhere = subprocess.DEVNULL
        process = subprocess.Popen(words, stdin=nowhere, stdout=nowhere, stderr=nowhere, start_new_session=True)
        ending.callback(process.wait)
        ending.callback(_kill_session, process.pid)
        yield Running(process, report, next((int(word[8:]) for word in options if word.startswith("--procs=")), 1))


def _kill_session(leader: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


@pytest.mark.parametrize(
    "options",
    [(), ("--threads=3",), ("--procs=3", f"--shared={SIZE}"), ("--churn",), ("--procs=2", "--forks"), EVERYTHING],
)
async def test_nothing_is_wrong_with_it(programs: Programs, node_dir: Path, options: tuple[str, ...]) -> None:
    with running(programs, node_dir, *options, "--pause=0") as edge:
        await edge.wait_for(lambda now: now[0].laps >= 20, "20 laps")
        now = await edge.verified()
        assert_right(now)
        assert now[0].edges == 1
        assert ("--churn" in options) == (now[0].changes > 0)
        assert ("--forks" in options) == (now[0].forks > edge.procs)
        await edge.finish()


def changed(page: bytes, step: int) -> bytes:
    """Its counter differs."""
    return page[:COUNTER] + bytes([(page[COUNTER] + step) % 256]) + page[COUNTER + 1 :]


FAULTS: dict[str, Callable[[bytes, bytes], bytes]] = {
    "older": lambda page, _: changed(page, -1),
    "newer": lambda page, _: changed(page, 1),
    "of another place": lambda _, other: other,
    "lost": lambda page, _: bytes(len(page)),
    "begins with another": lambda page, other: other[:8] + page[8:],
    "ends with another": lambda page, other: page[:-8] + other[-8:],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("process", [0, 1])
async def test_a_wrong_page_is_found(programs: Programs, node_dir: Path, fault: str, process: int) -> None:
    """It stands still, with its edge at the beginning: no page may differ."""
    with running(programs, node_dir, "--procs=2", "--batch=0") as edge:
        one = (await edge.reports())[process]
        edge.spoil(one.pid, one.base + 7 * PAGE, FAULTS[fault])
        now = await edge.verified()
        assert (now[process].wrong, now[process].at) == (1, one.base + 7 * PAGE)
        assert now[1 - process].wrong == 0
        assert (now[process].edges > 1) == (fault in ("older", "newer", "lost"))
        with pytest.raises(AssertionError, match="1 wrong pages, the first at 0x"):
            assert_right(now)


async def test_an_old_page_is_found_while_it_runs(programs: Programs, node_dir: Path) -> None:
    with running(programs, node_dir) as edge:
        one = (await edge.reports())[0]
        old: list[bytes] = []

        def keep(page: bytes, _: bytes) -> bytes:
            old.append(page)
            return page

        edge.spoil(one.pid, one.base + 3 * PAGE, keep)
        await edge.wait_for(lambda now: now[0].laps >= one.laps + 2, "two laps")
        edge.spoil(one.pid, one.base + 3 * PAGE, lambda *_: old[0])
        assert (await edge.verified())[0].wrong >= 1


async def test_wrong_pages_of_small_regions_are_found(programs: Programs, node_dir: Path) -> None:
    with running(programs, node_dir, "--churn", "--batch=0") as edge:
        before = (await edge.wait_for(lambda now: now[0].changes > 100, "100 changes"))[0]
        os.kill(before.pid, signal.SIGSTOP)
        await until(lambda: ") T " in Path(f"/proc/{before.pid}/stat").read_text(), "it to stop")
        assert _spoil_arena(edge, before.pid) > 1
        os.kill(before.pid, signal.SIGUSR1)
        os.kill(before.pid, signal.SIGCONT)
        now = await edge.wait_for(lambda now: now[0].demanded > before.demanded, "it to verify its memory")
        assert now[0].wrong > 0


def _spoil_arena(edge: Running, pid: int) -> int:
    """Count one more on each page that is there; how many."""
    count = 0

    def fault(page: bytes, _: bytes) -> bytes:
        nonlocal count
        count += any(page[:8])
        return changed(page, 1) if any(page[:8]) else page

    for start, end in re.findall(r"^([0-9a-f]+)-([0-9a-f]+) ", Path(f"/proc/{pid}/maps").read_text(), re.MULTILINE):
        for address in range(int(start, 16), int(end, 16), PAGE) if int(start, 16) >> 40 == ARENA >> 40 else ():
            edge.spoil(pid, address, fault)
    return count


async def test_what_it_cannot_do_it_says(programs: Programs, node_dir: Path) -> None:
    with running(programs, node_dir, "--size=1000000000000000"):
        await until(lambda: (node_dir / "report").exists() and (node_dir / "report").stat().st_size > 0, "its report")
        report = node_dir / "report"
        await until(lambda: report.read_text().startswith("ERROR"), "its last word")
        with pytest.raises(AssertionError, match="mmap:ENOMEM"):
            parse(report.read_text())


async def test_it_survives_dump_and_restore(criu: Path, programs: Programs, node_dir: Path) -> None:
    with running(programs, node_dir, *EVERYTHING) as edge:
        before = (await edge.wait_for(lambda now: now[0].laps >= 2, "two laps"))[0]
        await run_criu(criu, "dump", node_dir, "-t", str(before.pid))
        await until(lambda: edge.process.poll() is not None, "it to be gone")
        await run_criu(criu, "restore", node_dir, "-d")
        now = await edge.verified()
        assert_right(now)
        assert now[0].beat > before.beat
        await edge.finish()
