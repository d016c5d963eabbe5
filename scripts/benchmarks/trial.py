"""One trial: a fresh process on fresh nodes is moved once, and verified.

Timed is, for every contender: from the moment at which `criu dump` is started to the first step that the process takes
at the destination (of a tree: that the last of its processes takes). The process notes its steps itself; a wrapper
around CRIU, the same for all, notes the start. Frozen is what the process missed: from its last step before the move to
its first one after it.
"""

import shlex
import shutil
import statistics
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import trio

from scripts.benchmarks.contenders import Contender, Move, Trip
from scripts.benchmarks.nodes import CommandFailed, started_node
from scripts.benchmarks.subject import Subject, Workload
from scripts.benchmarks.warm import warming

#: Pids from here on are for what is moved: no node uses them for itself.
FIRST_PID = 20000
PIDS_EACH = 200

_WRAPPER = """#!/bin/bash
if [[ $1 == dump ]]; then
    {warming}
    echo "$EPOCHREALTIME" >>'{note}'
fi
exec {criu} "$@"
"""

_numbers = count(1)


@dataclass(frozen=True)
class Setting:
    """What is the same for all trials of a run."""

    directory: Path  #: on tmpfs
    disk: Path  #: on the machine's disk
    criu: Path
    program: Path  #: the compiled self-checking process
    repeats: int
    quick: bool
    streamer: str | None
    original: Path | None  #: a CRIU that has --remote
    say: Callable[[str], None]
    before: tuple[str, ...] = ()  #: words before CRIU and before the process, as in `env NAME=VALUE`


@dataclass(frozen=True)
class Measurement:
    """Seconds, and whatever else was found out."""

    seconds: float  #: dump start to running
    frozen: float
    found: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Series:
    """All trials of one contender."""

    name: str
    workload: Workload
    measurements: Sequence[Measurement]

    @property
    def seconds(self) -> float:
        """The median."""
        return statistics.median(one.seconds for one in self.measurements)

    @property
    def frozen(self) -> float:
        """The median."""
        return statistics.median(one.frozen for one in self.measurements)

    @property
    def rate(self) -> float:
        """Bytes of memory per second, by the median."""
        return self.workload.total / self.seconds

    def median(self, name: str) -> float:
        """Of a number among what was found."""
        return float(statistics.median(one.found[name] for one in self.measurements))

    def as_dict(self) -> dict[str, Any]:
        """For the JSON file: every number that was measured."""
        return {
            "name": self.name,
            "workload": vars(self.workload),
            "seconds": self.seconds,
            "frozen": self.frozen,
            "trials": [vars(one) for one in self.measurements],
        }


Around = Callable[[Trip, Move], Any]


async def compare(
    setting: Setting, workload: Workload, contenders: Sequence[Contender], repeats: int | None = None
) -> list[Series]:
    """Move such a process with each contender in turn, again and again.

    Each round begins with another one: what a trial leaves behind (memory that is warm or not) falls to each in turn.
    """
    measured: dict[str, list[Measurement]] = {contender.name: [] for contender in contenders}
    for number in range(repeats or setting.repeats):
        first = number % len(contenders)
        for contender in [*contenders[first:], *contenders[:first]]:
            one = await measure(setting, workload, contender)
            measured[contender.name].append(one)
            setting.say(f"{contender.name}, {number + 1}: {one.seconds:.3f} s")
    return [Series(name, workload, trials) for name, trials in measured.items()]


async def measure(
    setting: Setting, workload: Workload, contender: Contender, *, sessions: int = 1, around: Around | None = None
) -> Measurement:
    """One trial. `around` may await the move itself and look at things meanwhile."""
    name = f"t{next(_numbers)}"
    directory, disk = setting.directory / name, setting.disk / name
    for each in (directory, disk):
        each.mkdir(mode=0o700)
    try:
        async with AsyncExitStack() as stack:
            source, destination = [await stack.enter_async_context(started_node()) for _ in range(2)]
            subjects = []
            for number in range(sessions):
                (directory / f"subject{number}").mkdir()
                await source.set_next_pid(FIRST_PID + number * PIDS_EACH)
                subjects.append(Subject(directory / f"subject{number}", workload))
                await subjects[-1].start(source, *setting.before, str(setting.program))
            note = directory / "dump-started"
            warm = warming(workload.total * sessions)
            wrapper = _wrap([*setting.before, str(setting.criu)], directory, note, warm if sessions == 1 else ["true"])
            trip = Trip(source, destination, directory, disk, subjects, wrapper, note)
            async with contender.prepared(trip) as move:
                if sessions > 1:
                    await trio.run_process(warm)
                await (around(trip, move) if around else move())
                for subject in subjects:
                    await subject.wait_running()
                found = _timed(subjects, trip.dump_started)
                for subject in subjects:
                    await subject.verify(destination)
            return Measurement(**found, found=trip.found)
    except CommandFailed as error:
        raise CommandFailed(f"{contender.name}: {error}\n{_logs(directory)}") from error
    finally:
        for each in (directory, disk):
            shutil.rmtree(each)


def _timed(subjects: Sequence[Subject], started: float) -> dict[str, float]:
    journeys = [journey for subject in subjects for journey in subject.journeys(started)]
    return {
        "seconds": max(one.resumed for one in journeys) - started,
        "frozen": max(one.resumed - one.stopped for one in journeys),
    }


def _wrap(criu: Sequence[str], directory: Path, note: Path, before: Sequence[str]) -> str:
    wrapper = directory / "criu"
    wrapper.write_text(_WRAPPER.format(note=note, criu=shlex.join(criu), warming=shlex.join(before)))
    wrapper.chmod(0o755)
    return str(wrapper)


def _logs(directory: Path) -> str:
    """The ends of all logs, for a trial that failed."""
    logs = sorted([*directory.rglob("*.log"), *directory.rglob("log")])
    return "\n".join(f"--- {log.relative_to(directory)}\n{log.read_text(errors='replace')[-1500:]}" for log in logs)
