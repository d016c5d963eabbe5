"""How long a small process stands still, and on what the time goes."""

import statistics

from scripts.benchmarks.contenders import Directory, Migrate
from scripts.benchmarks.report import Report, compared
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Setting, compare


async def freeze(setting: Setting, workload: Workload) -> Report:
    """Compare with CRIU through a directory, and break our own time down as `imgproxy migrate` reports it."""
    series = await compare(setting, workload, [Migrate(), Directory()])
    report = compared(f"freeze: a process of {workload.size >> 10} KiB", series, Directory.name)
    ours = series[0].measurements
    phases: dict[str, float] = {}
    for name in ours[0].found["phases"]:
        phases[name] = statistics.median(one.found["phases"][name] for one in ours)
        report.rows.append((f"  {name}", f"{phases[name]:.3f} s", *[""] * (len(report.columns) - 2)))
    report.raw["phases"] = phases
    return report
