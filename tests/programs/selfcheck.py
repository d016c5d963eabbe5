"""The test's view of memcheck: is it alive, does it advance, is its memory right, did it run on one node only.

A SelfCheck follows the process through its migration by the report file, not by the process that was started: after a
dump and a restore the same object answers for the restored one. It polls that file, because the process under test must
have no channel to its observer that CRIU would have to migrate. Deadlines are in seconds and fail the test.

The process may be in any pid namespace below the test's, and in another one after its migration: the report has its
pids there, and `/proc` tells which processes here these are.
"""

import errno
import os
import re
import select
import signal
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.programs import Programs

REPORT_LINE = 192
HISTORY_RECORDS = 1 << 20
HISTORY_RECORD = struct.Struct("=IIQ")  # times reached, pid that reached it first, CLOCK_REALTIME ns then
POLL_SECONDS = 0.005
DEATH_MILLISECONDS = 10_000  # a killed process of some GiB needs tenths of a second to go

_LINE = re.compile(
    r"(?P<state>\w+) pid=(?P<pid>\d+) counter=(?P<counter>\d+) passes=(?P<passes>\d+) demanded=(?P<demanded>\d+)"
    r" monotonic=(?P<monotonic>\d+) end=(?P<end>\d+) *\n"
)


class UnreadableReport(AssertionError):
    """A report that is not there yet, or was read while it was being written: read it again."""


@dataclass(frozen=True)
class Report:
    """One process's line of the report. `passes`: verifications of its memory; `demanded`: those done on SIGUSR1."""

    state: str
    pid: int
    counter: int
    passes: int
    demanded: int
    monotonic: int


class SelfCheck:
    """A tree of memcheck processes, before, during and after its migration. Made by the fixture `start_memcheck`."""

    def __init__(self, programs: Programs, directory: Path, arguments: list[str], procs: int = 1) -> None:
        """Start memcheck with its report and history in `directory`, which both nodes must see under this path."""
        self.report_path = directory / "report"
        self.history_path = directory / "history"
        self.program = programs.memcheck
        self._seen: set[int] = set()
        self.procs = procs
        files = [f"--report={self.report_path}", f"--history={self.history_path}", f"--procs={procs}"]
        self.reaper = subprocess.Popen(
            [programs.reaper, programs.memcheck, *files, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self.reaper.stdout is not None
        with self.reaper.stdout as pid:
            self.pid = int(pid.read())

    def reports(self) -> list[Report]:
        """What each process last said, root first. AssertionError on a wrong byte of memory."""
        lines = self.report_path.read_text(encoding="ascii") if self.report_path.exists() else ""
        if len(lines) != self.procs * REPORT_LINE:
            raise UnreadableReport(f"memcheck has not made its report: {lines!r}")
        return [self._parse(lines[at : at + REPORT_LINE]) for at in range(0, len(lines), REPORT_LINE)]

    def _parse(self, line: str) -> Report:
        assert not line.startswith("ERROR"), f"memcheck: {line.strip()}"
        fields = _LINE.fullmatch(line)
        if fields is None or fields["counter"] != fields["end"]:
            raise UnreadableReport(f"torn or missing report line: {line!r}")
        numbers = {name: int(value) for name, value in fields.groupdict().items() if name not in {"state", "end"}}
        return Report(state=fields["state"], **numbers)

    def pids(self) -> list[int]:
        """The pids, in the test's namespace, of the whole tree that runs now, root first."""
        running = self._running()
        return sorted(running, key=lambda pid: (running[pid] != self.pid, pid))

    def _running(self) -> dict[int, int]:
        """Living memchecks with our report: pid here, pid in their own namespace."""
        running = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                ours = str(self.report_path).encode() in (process / "cmdline").read_bytes()
                if ours and _comm(int(process.name)) == self.program.name:
                    running[int(process.name)] = _innermost_pid(process)
        self._seen |= set(running)
        return running

    def _signal(self, inner: int, number: int) -> None:
        """Signal the process of the tree that has this pid in its own namespace."""
        for pid, known_as in self._running().items():
            if known_as == inner:
                os.kill(pid, number)

    def alive(self) -> bool:
        """True while every process of the tree exists; a frozen one does too."""
        return len(self.pids()) == self.procs

    async def _until(self, what: str, condition: Callable[[list[Report]], bool], deadline: float) -> list[Report]:
        last: list[Report] | UnreadableReport | None = None
        with trio.move_on_after(deadline):
            while True:
                try:
                    last = self.reports()
                    if condition(last):
                        return last
                except UnreadableReport as problem:
                    last = problem
                await trio.sleep(POLL_SECONDS)
        raise AssertionError(f"memcheck {self.pid}: {what}, not within {deadline} s; running: {self.pids()}; {last}")

    async def _now(self) -> list[Report]:
        return await self._until("to report", bool, deadline=10)

    async def wait_ready(self, *, deadline: float = 60) -> None:
        """Wait until all memory is filled and every process counts."""
        await self._until("to fill its memory", lambda now: all(report.state == "run" for report in now), deadline)
        self._running()

    async def wait_progress(self, steps: int = 10, *, deadline: float = 30) -> None:
        """Wait until every process's counter has risen by `steps` (about 2 ms each): they run."""
        start = await self._now()
        await self._until(
            f"to advance by {steps} from {[report.counter for report in start]}",
            lambda now: all(new.counter >= old.counter + steps for old, new in zip(start, now, strict=True)),
            deadline,
        )

    async def verify_memory(self, *, deadline: float = 60) -> None:
        """Have every process verify every byte from now, and wait until they have."""
        running = self.pids()
        start = await self._now()  # after that: if one has died of a wrong byte, that is what is told
        assert len(running) == self.procs, f"memcheck {self.pid}: not all of its {self.procs} processes run: {running}"
        for report in start:
            self._signal(report.pid, signal.SIGUSR1)
        await self._until(
            "to verify all memory",
            lambda now: all(new.demanded > old.demanded for old, new in zip(start, now, strict=True)),
            deadline,
        )

    async def wait_gone(self, *, deadline: float = 10) -> None:
        """Wait until no process of the tree is left (a successful dump has killed it), zombies included."""
        with trio.move_on_after(deadline):
            while True:
                if not any(_comm(pid) == self.program.name for pid in self._seen):
                    return
                await trio.sleep(POLL_SECONDS)
        raise AssertionError(f"memcheck {self.pid}: still there after {deadline} s: {self.pids()}")

    async def finish(self, *, deadline: float = 60) -> None:
        """End the tree by SIGTERM, and require its farewell: all memory verified once more, every child ended well."""
        self._signal(self.pid, signal.SIGTERM)
        await self._until("to say bye", lambda now: all(report.state == "bye" for report in now), deadline)
        await self.wait_gone(deadline=deadline)

    def histories(self) -> Iterator[list[tuple[int, int, int]]]:
        """For each process, (times, pid, nanoseconds) of the counter values reached, from 0."""
        length = HISTORY_RECORDS * HISTORY_RECORD.size
        with self.history_path.open("rb") as history:
            for start in range(0, self.procs * length, length):
                used = min(os.lseek(history.fileno(), start, os.SEEK_HOLE), start + length) - start
                reached = os.pread(history.fileno(), used, start).rstrip(b"\0")
                whole = -(-len(reached) // HISTORY_RECORD.size) * HISTORY_RECORD.size
                yield list(HISTORY_RECORD.iter_unpack(reached.ljust(whole, b"\0")))

    def assert_single_history(self) -> None:
        """Fail unless each process reached each counter value once, in order of time: there was never a second copy."""
        reported = self.reports()
        for slot, records in enumerate(self.histories()):
            assert len(records) >= max(1, reported[slot].counter), f"process {slot} counted {len(records)} steps only"
            before = 0
            for counter, (times, pid, nanoseconds) in enumerate(records):
                assert times == 1, f"process {slot} reached counter {counter} {times} times, first as pid {pid}"
                in_order = nanoseconds >= before or counter == len(records) - 1
                assert in_order, f"process {slot} reached counter {counter} before {counter - 1}"
                before = nanoseconds

    def kill(self) -> None:
        """SIGKILL whatever is left of the tree, original or restored, and return when it is gone."""
        for pid in self.pids():
            kill_and_wait(pid)
        assert self.reaper.stdin is not None
        self.reaper.stdin.close()
        assert self.reaper.wait(timeout=DEATH_MILLISECONDS / 1000) == 0, "the reaper of memcheck failed"


def _innermost_pid(process: Path) -> int:
    """The pid that a process knows itself by."""
    lines = (process / "status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("NSpid:")).split()[-1])


def _comm(pid: int) -> str:
    """The name of a process, also of a zombie; "" if there is none."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def kill_and_wait(pid: int) -> None:
    """SIGKILL a process that need not be a child, and return when it is dead; one that is gone already is fine."""
    try:
        process = os.pidfd_open(pid)
    except OSError as problem:
        if problem.errno == errno.ESRCH:
            return
        raise
    try:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(process, signal.SIGKILL)
        death = select.poll()
        death.register(process, select.POLLIN)
        assert death.poll(DEATH_MILLISECONDS), f"process {pid} survives SIGKILL"
    finally:
        os.close(process)
