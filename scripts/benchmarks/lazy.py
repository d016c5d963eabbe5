"""Post-copy: how long a process stands still, whatever the size of its memory, and how long that follows it.

What depends on the size is CRIU's walk through the page tables before anything can be sent, page by page, so both kinds
of memory are measured: small pages, and transparent huge pages.
"""

import statistics
from collections.abc import Sequence

from scripts.benchmarks.contenders import Migrate
from scripts.benchmarks.report import MIB, Report, Target
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Measurement, Setting, measure

#: The time from freeze to running at the largest size is at most this many times that at the smallest.
INDEPENDENT = 1.5
PAGES = {False: "4 KiB pages", True: "huge pages"}
#: Phases of the time frozen, as `imgproxy migrate` tells them.
PHASES = ("dump and send", "restore")


async def lazy(setting: Setting, workload: Workload) -> Report:
    """Measure two sizes in turns, as compressible as the given workload. Frozen is what `imgproxy migrate` tells: from
    the first image to the first instruction there; a step of the process waits for its pages, too."""
    sizes = (2, 8) if setting.quick else (64, 1024)
    trials: dict[tuple[bool, int], list[Measurement]] = {(huge, size): [] for huge in PAGES for size in sizes}
    contender = Migrate(name="imgproxy migrate --lazy", options=("--lazy", "--compress", "off"))
    for _ in range(setting.repeats):
        for (huge, size), found in trials.items():
            moved = Workload(size * MIB, compressible=workload.compressible, huge=huge)
            one = await measure(setting, moved, contender)
            found.append(one)
            setting.say(f"{size} MiB, {PAGES[huge]}: frozen for {one.found['frozen']:.3f} s")
    report = Report(
        "lazy: freeze to running", ("", "frozen", *(f"of it, {phase}" for phase in PHASES), "to its next step")
    )
    for (huge, size), all_ in trials.items():
        report.rows.append((f"{size} MiB, {PAGES[huge]}", *_medians(all_)))
    smallest, largest = sizes
    for huge, pages in PAGES.items():
        ratio = _frozen(trials[huge, largest]) / _frozen(trials[huge, smallest])
        report.targets.append(Target(f"frozen at {largest} MiB, times that at {smallest}, {pages}", ratio, INDEPENDENT))
    report.raw["trials"] = {
        f"{size} MiB, {PAGES[huge]}": [vars(one) for one in all_] for (huge, size), all_ in trials.items()
    }
    return report


def _frozen(trials: Sequence[Measurement]) -> float:
    return float(statistics.median(one.found["frozen"] for one in trials))


def _medians(trials: Sequence[Measurement]) -> list[str]:
    """Of each column."""
    phases = [statistics.median(one.found["phases"][phase] for one in trials) for phase in PHASES]
    step = statistics.median(one.frozen for one in trials)
    return [f"{seconds:.3f} s" for seconds in (_frozen(trials), *phases, step)]
