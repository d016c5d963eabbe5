"""The original `criu --remote`: through its own image-proxy and image-cache, and through our programs instead.

That CRIU is a development build of long ago and no part of this project: `--original` names one. Where memory counts,
the images are taken to be as large as the memory of the process; they are a little larger.
"""

import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from imgnode.criu import Criu
from scripts.benchmarks.remote_pairs import MEMORY_FOUND, OriginalPair, OurPair
from scripts.benchmarks.report import MIB, Report, Target
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Series, Setting, compare

NEEDS_ORIGINAL = "a CRIU 3.14 development build that has --remote (a peer that is not part of this project)"

#: Dump start to restored, at least this many times faster than the original pair.
FASTER = 2.0
#: Memory of the proxy above what it has when ready, and of the cache above the images.
MEMORY = 64 * MIB

#: This CRIU knows nothing of rseq areas, which the C libraries of today register.
WITHOUT_RSEQ = ("env", "GLIBC_TUNABLES=glibc.pthread.rseq=0")

COLUMNS = ("", "dump start to restored", "least", "most", "MiB/s", "times faster")


def has_remote(criu: Path) -> bool:
    """Whether this is a CRIU that has --remote."""
    try:
        done = subprocess.run([criu.absolute(), "--help"], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return "--remote" in done.stdout


async def remote(setting: Setting, workload: Workload) -> Report:
    """Compare at `workload`."""
    assert setting.original is not None
    version = await Criu(setting.original).version()
    setting = replace(setting, criu=setting.original, before=WITHOUT_RSEQ)
    ours = [OurPair("ours, no scripts"), OurPair("ours, both scripts", scripts=True)]
    series = await compare(setting, workload, [OriginalPair(), *ours])
    report = judged(workload, series)
    report.raw["original"] = str(version)
    return report


def judged(workload: Workload, series: Sequence[Series]) -> Report:
    """The figures; the first series is the original pair's. Times are medians, memory is the most of all trials."""
    report = Report(f"remote: {workload.total // MIB} MiB over loopback, by the original criu --remote", COLUMNS)
    base = series[0].median("restored")
    for one in series:
        report.rows.append(_row(one, base))
        report.notes.append(_memory(one))
    for one in series[1:]:
        report.targets += _targets(one, base)
    report.raw["series"] = [one.as_dict() | {"restored": one.median("restored")} for one in series]
    return report


def _row(one: Series, base: float) -> Sequence[str]:
    every = [trial.found["restored"] for trial in one.measurements]
    restored = statistics.median(every)
    times = [f"{seconds:.3f} s" for seconds in (restored, min(every), max(every))]
    rates = (f"{one.workload.total / MIB / restored:.0f}", f"{base / restored:.2f}")
    return (one.name, *times, *rates)


def _memory(one: Series) -> str:
    most = {name: f"{max(trial.found[name] for trial in one.measurements) / MIB:.1f}" for name in MEMORY_FOUND}
    text = (
        "proxy {proxy_peak} MiB resident ({proxy_start} when ready), "
        "cache {cache_peak} MiB ({cache_start}) and {cache_memfds} MiB in memfds"
    )
    return f"{one.name}: {text.format(**most)}"


def _targets(one: Series, base: float) -> list[Target]:
    trials = [trial.found for trial in one.measurements]
    growth = max(found["proxy_peak"] + found["proxy_memfds"] - found["proxy_start"] for found in trials)
    above = max(found["cache_peak"] + found["cache_memfds"] for found in trials) - one.workload.total
    faster = base / one.median("restored")
    return [
        Target(f"{one.name}: times faster than the original pair", faster, FASTER, at_most=False),
        Target(f"{one.name}: proxy, MiB above what it has when ready", growth / MIB, MEMORY / MIB),
        Target(f"{one.name}: cache, MiB above the images", above / MIB, MEMORY / MIB),
    ]
