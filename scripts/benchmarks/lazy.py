"""Post-copy: how long a process stands still, whatever the size of its memory, and how long that follows it."""

import statistics

from scripts.benchmarks.contenders import Migrate
from scripts.benchmarks.report import MIB, Report, Target
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Measurement, Setting, measure

#: The time from freeze to running at the largest size is at most this many times that at the smallest.
INDEPENDENT = 1.5


async def lazy(setting: Setting, workload: Workload) -> Report:
    """Measure two sizes in turns, as compressible as the given workload. Frozen is what `imgproxy migrate` tells: from
    the first image to the first instruction there; a step of the process waits for its pages, too."""
    sizes = (2, 8) if setting.quick else (64, 1024)
    trials: dict[int, list[Measurement]] = {size: [] for size in sizes}
    contender = Migrate(name="imgproxy migrate --lazy", options=("--lazy", "--compress", "off"))
    for _ in range(setting.repeats):
        for size in sizes:
            one = await measure(setting, Workload(size * MIB, compressible=workload.compressible), contender)
            trials[size].append(one)
            setting.say(f"{size} MiB: frozen for {one.found['frozen']:.3f} s")
    report = Report("lazy: freeze to running", ("", "frozen", "to the process's next step"))
    frozen = {size: statistics.median(one.found["frozen"] for one in all_) for size, all_ in trials.items()}
    for size, all_ in trials.items():
        step = statistics.median(one.frozen for one in all_)
        report.rows.append((f"{size} MiB", f"{frozen[size]:.3f} s", f"{step:.3f} s"))
    smallest, largest = sizes
    ratio = frozen[largest] / frozen[smallest]
    report.targets.append(Target(f"frozen at {largest} MiB, times that at {smallest}", ratio, INDEPENDENT))
    report.raw["trials"] = {size: [vars(one) for one in all_] for size, all_ in trials.items()}
    return report
