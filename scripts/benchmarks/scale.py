"""Whether the cost grows linearly: with the size of a process, with the processes of a tree, with sessions at once."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scripts.benchmarks.contenders import ByHand
from scripts.benchmarks.report import MIB, Report, Target
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Setting, measure

#: The time for each unit at the largest point is at most this many times what it is at the point before.
LINEAR = 1.25
#: Microseconds between the steps of one process where there are many, so that they leave the processors free.
PAUSE = 20_000


@dataclass(frozen=True)
class Axis:
    """One thing that grows. A point is (units, workload, sessions)."""

    name: str
    unit: str
    points: Sequence[tuple[int, Workload, int]]


def axes(quick: bool, compressible: int) -> list[Axis]:
    """What is measured. Many processes are small, so that two processors can run them at all."""
    sizes = (2, 4) if quick else (64, 256, 1024, 4096)
    trees = (1, 4) if quick else (1, 10, 100)
    sessions = (1, 2) if quick else (1, 8, 32)
    each = Workload(MIB if quick else 16 * MIB, compressible=compressible, pause=PAUSE)
    return [
        Axis("size", "MiB", [(size, Workload(size * MIB, compressible=compressible), 1) for size in sizes]),
        Axis("tree", "processes", [(count, Workload(MIB // 8, count, compressible, PAUSE), 1) for count in trees]),
        Axis("sessions", "sessions", [(count, each, count) for count in sessions]),
    ]


async def scale(setting: Setting, workload: Workload) -> Report:
    """Measure every point of every axis in turns. Each has a workload of its own, as compressible as the given one."""
    report = Report("scale", ("", "dump start to running", "for each", "frozen"))
    report.raw["axes"] = {}
    for axis in axes(setting.quick, workload.compressible):
        times: dict[int, list[float]] = {units: [] for units, _, _ in axis.points}
        frozen: dict[int, list[float]] = {units: [] for units, _, _ in axis.points}
        for _ in range(setting.repeats):
            for units, work, sessions in axis.points:
                one = await measure(setting, work, ByHand(), sessions=sessions)
                times[units].append(one.seconds)
                frozen[units].append(one.frozen)
                setting.say(f"{units} {axis.unit}: {one.seconds:.3f} s")
        _add(report, axis, times, frozen)
    return report


def _add(report: Report, axis: Axis, times: dict[int, list[float]], frozen: dict[int, list[float]]) -> None:
    medians = {units: statistics.median(all_) for units, all_ in times.items()}
    for units, seconds in medians.items():
        each = f"{seconds / units * 1000:.2f} ms"
        report.rows.append(
            (f"{units} {axis.unit}", f"{seconds:.3f} s", each, f"{statistics.median(frozen[units]):.3f} s")
        )
    slope, start = statistics.linear_regression(list(medians), list(medians.values()))
    report.notes.append(f"{axis.name}: {start:.3f} s + {slope * 1000:.3f} ms for each of {axis.unit}")
    *_, (smaller, before), (larger, after) = medians.items()
    growth = (after / larger) / (before / smaller)
    report.targets.append(Target(f"{axis.name}: cost of a unit at {larger}, times that at {smaller}", growth, LINEAR))
    report.raw["axes"][axis.name] = {"seconds": times, "frozen": frozen, "slope": slope, "intercept": start}
