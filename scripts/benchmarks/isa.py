"""What a change of ISA adds to a migration: a program of hetcc's, full of memory, its threads deep in frames.

It is stopped at points and dumped once into a directory on tmpfs, and that is sent to a cache again and again, in
turns with `--arch` and without. Nothing of another ISA need run for that: the time that the transforms take once the
cache has the last page is what `imgproxy send -v` tells, and includes what is read back from there and patched.
"""

import json
import platform
import shutil
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from scripts.benchmarks.nodes import Node, started_node, until
from scripts.benchmarks.pairs import ROOT, run
from scripts.benchmarks.report import MIB, Report, Target
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Setting

SOURCE = ROOT / "scripts/benchmarks/programs/stacks.c"
OTHER = {"x86_64": "aarch64", "aarch64": "x86-64"}
THREADS = 4
FRAMES, MORE_FRAMES = 100, 10_000
#: Seconds that the transforms may add with THREADS times FRAMES; that with the most memory, times that with the least;
#: a frame's share of it with MORE_FRAMES, times that of one among FRAMES; and the rate with them, of that without.
ADDED, INDEPENDENT, LINEAR, RATE = 0.020, 1.2, 1.0, 0.95
#: Pages are spliced as they are, so that what is compared is not how well they compress.
SEND = ("imgproxy", "send", "-v")

_numbers = count(1)


@dataclass
class Case:
    """A dump, and what sending it took: seconds of all with and without `--arch`, and of the transforms alone."""

    frames: int  #: of each thread
    size: int  #: bytes of memory
    changed: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    added: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{THREADS} threads of {self.frames} frames, {self.size // MIB} MiB"

    @property
    def median(self) -> float:
        """Seconds that the transforms added."""
        return statistics.median(self.added)

    @property
    def rate(self) -> float:
        """Of sending with a change of ISA, of that without."""
        return statistics.median(one / other for one, other in zip(self.plain, self.changed, strict=True))


def cases(workload: Workload) -> list[Case]:
    """The first has the usual frames and little memory; one has more frames, and one has more memory."""
    little = max(workload.size // 64, MIB)
    return [Case(FRAMES, little), Case(MORE_FRAMES, little), Case(FRAMES, workload.size)]


async def isa(setting: Setting, workload: Workload) -> Report:
    """Measure at `workload`, and at a 64th of its memory."""
    pair = setting.directory / "stacks"
    run(["hetcc", "-O2", SOURCE, "-o", "stacks", "--layout", pair])
    found = cases(workload)
    for case in found:
        setting.say(f"{case}: dump")
        images = setting.directory / f"images{next(_numbers)}"
        images.mkdir(mode=0o700)
        async with started_node() as node:
            await _dump(setting, node, pair, case, images)
        for number in range(setting.repeats):
            await _compare(setting, case, pair, images, first=number % 2 == 0)
        shutil.rmtree(images)
    return judged(found)


async def _dump(setting: Setting, node: Node, pair: Path, case: Case, images: Path) -> None:
    said = setting.directory / f"said{next(_numbers)}"
    words = [pair / "stacks", THREADS, case.frames, case.size]
    await node.run("sh", "-c", f'exec setsid --fork "$0" "$@" </dev/null >{said} 2>&1', *map(str, words))
    await until(lambda: said.read_text() == "ready\n", "the program should be ready")
    pid = (await node.run("pgrep", "-x", "stacks")).strip()
    await node.run("imgproxy", "trap", pid)
    await node.run(str(setting.criu), "dump", "-t", pid, "-D", str(images), "-o", "dump.log", "--shell-job")


async def _compare(setting: Setting, case: Case, pair: Path, images: Path, *, first: bool) -> None:
    """Send it both ways, to a fresh cache each."""
    change = ["--arch", OTHER[platform.machine()], "--binaries", str(pair)]
    for changes in (first, not first):
        seconds, said = await _sent(setting, images, change if changes else [])
        (case.changed if changes else case.plain).append(seconds)
        if changes:
            case.added.append(
                next(float(line["seconds"]) for line in said if line["event"] == "the transforms are done")
            )
            setting.say(f"{case}: {case.added[-1] * 1000:.1f} ms added, {seconds:.2f} s in all")


async def _sent(setting: Setting, images: Path, options: Sequence[str]) -> tuple[float, list[dict[str, float | str]]]:
    """Seconds of `imgproxy send`, and the lines of its log."""
    directory = setting.directory / f"cache{next(_numbers)}"
    directory.mkdir(mode=0o700)
    async with started_node() as node:
        link = f"unix:{directory}/link"
        await node.start_service(directory / "log", "imgcache", "-D", str(directory), "--listen", link)
        began = time.monotonic()
        told = await node.run(*SEND, str(images), "--to", link, "--compress", "off", *options)
        seconds = time.monotonic() - began
    shutil.rmtree(directory)
    return seconds, [json.loads(line) for line in told.splitlines() if line.startswith("{")]


def judged(found: Sequence[Case]) -> Report:
    """The table and the targets."""
    usual, deep, large = found
    report = Report("isa: what a change of ISA adds", ("", "transforms", "sent in", "without", "rate"))
    for case in found:
        both = (f"{statistics.median(times):.2f} s" for times in (case.changed, case.plain))
        report.rows.append((str(case), f"{case.median * 1000:.1f} ms", *both, f"{case.rate:.2f}"))
    each = deep.median / deep.frames / (usual.median / usual.frames)
    report.targets = [
        Target(f"seconds that the transforms add, {usual}", usual.median, ADDED),
        Target(f"a frame among {deep.frames}, times one among {usual.frames}", each, LINEAR),
        Target(f"the same with {large.size // MIB} MiB, times that", large.median / usual.median, INDEPENDENT),
        Target(f"rate of {large.size // MIB} MiB, of that without", large.rate, RATE, at_most=False),
    ]
    report.raw["cases"] = [vars(case) for case in found]
    return report
