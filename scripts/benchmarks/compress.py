"""Compression: over a link of 1 Gbit/s it is to win what it saves, and over loopback to lose nothing.

The kernel's token bucket makes loopback such a link for the first part.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from scripts.benchmarks.contenders import Migrate
from scripts.benchmarks.nodes import CommandFailed
from scripts.benchmarks.report import MIB, Report, Target, compared
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Series, Setting, compare

LINK = "1gbit"
#: Percent of each page that repeats a word: zstd makes about a third of such a page.
COMPRESSIBLE = 70
#: Of the compression ratio, how much must be gained in time: the rest of a migration is not on the link.
GAINED = 0.7
#: Times of one contender that differ by less are the same.
NOISE = 1.10

_SHAPE = ("tbf", "rate", LINK, "burst", "256kb", "latency", "50ms")


async def compress(setting: Setting, workload: Workload) -> Report:
    """Compare `auto` with `off` over both links."""
    work = replace(workload, compressible=workload.compressible or COMPRESSIBLE)
    off, auto = Migrate("off", ("--compress", "off")), Migrate("auto", ("--compress", "auto"))
    with shaped():
        slow = await compare(setting, work, [off, auto])
    fast = await compare(setting, work, [off, auto])
    report = compared(f"compress: {work.total // MIB} MiB, {LINK}", slow, off.name)
    for one, row in zip(fast, compared("", fast, off.name).rows, strict=True):
        report.rows.append((f"{one.name}, loopback", *row[1:]))
    ratio = _ratio(slow[1])
    faster = slow[0].seconds / slow[1].seconds
    report.targets = [
        Target(f"{LINK}: times faster with auto, for each time smaller", faster / ratio, GAINED, at_most=False),
        Target("loopback: auto, times the time of off", fast[1].seconds / fast[0].seconds, NOISE),
    ]
    report.notes.append(f"{LINK}: {faster:.2f} times faster, {ratio:.2f} times smaller on the link")
    report.raw.update(ratio=ratio, faster=faster, loopback=[one.as_dict() for one in fast])
    return report


def _ratio(series: Series) -> float:
    return series.median("image_bytes") / series.median("wire_bytes")


@contextmanager
def shaped() -> Iterator[None]:
    """Loopback as a slow link; it is our own loopback."""
    _tc("add", *_SHAPE)
    try:
        yield
    finally:
        _tc("delete")


def _tc(action: str, *shape: str) -> None:
    command = ["tc", "qdisc", action, "dev", "lo", "root", *shape]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)}: {done.stderr.strip()}")
