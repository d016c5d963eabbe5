"""The process that is moved, and what it tells of its journey.

It is the tests' self-checking process. It notes every step that it takes with the time, so the moment
at which it runs again is known from itself, whoever moved it; and a figure only counts if it finds its memory right.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from scripts.benchmarks.nodes import CommandFailed, Node, until
from tests.programs.selfcheck import HISTORY_RECORD, HISTORY_RECORDS, REPORT_LINE

#: Seconds for a process to fill its memory, or to verify it.
PATIENCE = 120.0
#: Steps after which it is believed to run.
STEPS = 5


@dataclass(frozen=True)
class Workload:
    """What is moved. `size` in bytes for each process, `compressible` in percent of each page, `pause` in microseconds;
    `huge`: in transparent huge pages.

    A process computes all the time, between pauses: of 32 with the usual pause nothing else would get to run.
    """

    size: int = 1 << 30
    procs: int = 1
    compressible: int = 0
    pause: int = 2000
    huge: bool = False

    @property
    def total(self) -> int:
        """Bytes of memory in the whole tree."""
        return self.size * self.procs


@dataclass(frozen=True)
class Journey:
    """Moments in seconds since the epoch: the last step before and the first one after it stood still."""

    stopped: float
    resumed: float


class Subject:
    """A tree of self-checking processes."""

    def __init__(self, directory: Path, workload: Workload) -> None:
        self.workload = workload
        self._report, self._history = directory / "report", directory / "history"
        self.pid = 0  #: of its root, on its nodes

    async def start(self, node: Node, *command: str) -> None:
        """Start it by this command and wait until all of its memory is filled."""
        work = self.workload
        options = {"report": self._report, "history": self._history}
        numbers = {"size": work.size, "procs": work.procs, "compressible": work.compressible, "pause": work.pause}
        words = [f"--{name}={value}" for name, value in {**options, **numbers}.items()]
        await node.detach(*command, *words, *(["--huge"] if work.huge else []))
        await self._until("fill its memory", lambda lines: all(line.startswith("run") for line in lines))
        self.pid = self._numbers("pid")[0]

    async def wait_running(self) -> None:
        """Wait until every process of it takes steps."""
        before = self._numbers("counter")
        await self._until(
            "go on",
            lambda _: all(new > old + STEPS for old, new in zip(before, self._numbers("counter"), strict=True)),
        )

    async def verify(self, node: Node) -> None:
        """Have every process verify every byte of its memory. CommandFailed if one is wrong."""
        before = self._numbers("demanded")
        await node.run("bash", "-c", f"kill -USR1 {' '.join(map(str, self._numbers('pid')))}")
        await self._until(
            "verify its memory",
            lambda _: all(new > old for old, new in zip(before, self._numbers("demanded"), strict=True)),
        )

    def journeys(self, since: float) -> list[Journey]:
        """For each process, the longest time that it stood still after `since`."""
        return [max(self._pauses(slot, since), key=lambda one: one.resumed - one.stopped) for slot in self._slots()]

    def _pauses(self, slot: int, since: float) -> list[Journey]:
        length = HISTORY_RECORDS * HISTORY_RECORD.size
        used = (self._numbers("counter")[slot] + 1) * HISTORY_RECORD.size
        with self._history.open("rb") as history:
            raw = os.pread(history.fileno(), used, slot * length)
        taken = [nanoseconds / 1e9 for _, _, nanoseconds in HISTORY_RECORD.iter_unpack(raw) if nanoseconds]
        return [Journey(before, after) for before, after in pairwise(taken) if after > since]

    def _slots(self) -> range:
        return range(self.workload.procs)

    def _lines(self) -> list[str]:
        text = self._report.read_text("ascii") if self._report.exists() else ""
        if "ERROR" in text:
            raise CommandFailed(f"the process found its memory damaged: {text.strip()}")
        return [text[at : at + REPORT_LINE] for at in range(0, len(text), REPORT_LINE)]

    def _numbers(self, name: str) -> list[int]:
        """A number that each process reports; numbers only rise, so a torn line gives one that was right just now."""
        return [int(line.partition(f" {name}=")[2].partition(" ")[0] or 0) for line in self._lines()]

    async def _until(self, what: str, condition: Callable[[list[str]], bool]) -> None:
        def holds() -> bool:
            lines = self._lines()
            return len(lines) == self.workload.procs and condition(lines)

        await until(holds, f"the process should {what}", PATIENCE)
