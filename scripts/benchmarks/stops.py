"""How long it takes to bring a process of four threads to points where it can change ISA, by `imgproxy.trap`, at random
moments, again and again.

Two times of each stop: how long it disturbs the process, from the first thread's stop until all stand at points; and
how long one waits for it, from the order until the process is stopped, the start of the guardian included.
"""

import platform
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from imgproxy.trap import release, trap
from scripts.benchmarks.pairs import run
from scripts.benchmarks.report import Report
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Setting

STOPS = 1000
QUICK = 20
SEED = 1
#: Seconds that it runs freely between two stops, at most.
FREE = 0.05
#: Seconds for one stop before the run is given up.
DEADLINE = 60.0


@dataclass(frozen=True)
class Stop:
    """Seconds that it took, and how many threads stood."""

    disturbed: float
    waited: float
    threads: int


async def stops(setting: Setting, _: Workload) -> Report:
    """Build the program, start it, and stop it so many times."""
    program = setting.directory / "four"
    run(["hetcc", "-O2", Path(__file__).parent / "programs/four.c", "-o", program])
    process = await trio.lowlevel.open_process([program])
    try:
        return judged(await _stop(process.pid, QUICK if setting.quick else STOPS))
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


async def _stop(pid: int, times: int) -> list[Stop]:
    moments, found = random.Random(SEED), []
    for _ in range(times):
        await trio.sleep(moments.random() * FREE)
        began = time.monotonic()
        async with trap(pid, DEADLINE) as stopped:
            found.append(Stop(stopped.seconds, time.monotonic() - began, len(stopped.points)))
        release(pid)
    return found


def judged(found: Sequence[Stop]) -> Report:
    """The table."""
    columns = ("", "median", "99th percentile", "longest")
    report = Report(f"stops: {len(found)} of a process of four threads on {platform.machine()}", columns)
    for what, times in (
        ("threads stand", [one.disturbed for one in found]),
        ("until it is stopped, from the order", [one.waited for one in found]),
    ):
        figures = (statistics.median(times), statistics.quantiles(times, n=100, method="inclusive")[98], max(times))
        report.rows.append((what, *(f"{seconds * 1000:.1f} ms" for seconds in figures)))
    report.raw.update(stops=[vars(one) for one in found])
    return report
