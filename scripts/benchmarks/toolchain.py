"""What it costs that a program can change ISA: programs as hetcc makes them, against what clang -O2 makes of the same
sources with the same musl, on this machine's ISA. How they are built: scripts/benchmarks/pairs.py.

CPU time of the process, the least of several runs in turns: what else runs makes times longer, never shorter.
"""

import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.nodes import CommandFailed
from scripts.benchmarks.pairs import KERNELS, Built, build_all
from scripts.benchmarks.report import Report, Target
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Setting

#: The mean of all slow-downs, as Unifico's compiler (a fork of LLVM) is reported to reach, and the worst one.
MEAN, WORST = 1.06, 1.20
#: Seconds to build Lua, by hetcc.
LUA_BUILT = 60.0
#: How often kernels are run that take some hundredths of a second.
TURNS = {"is": 10}
LUA = Path(__file__).parent / "lua"


@dataclass(frozen=True)
class Subject:
    """A program and what it is to do."""

    name: str
    program: str
    arguments: tuple[str, ...]
    stdin: Path = Path(os.devnull)
    turns: int = 1  #: runs that are one measurement


async def toolchain(setting: Setting, workload: Workload) -> Report:
    """Build everything both ways, and compare."""
    place = setting.directory / "toolchain"
    built = build_all(place, setting.say)
    data = place / "data"
    manual = (place / "lua/doc/manual.html").read_bytes()
    data.write_bytes((manual * (workload.total // len(manual) + 1))[: workload.total])
    least = measure(setting, place, _subjects(setting, data))
    return judged(least, built)


def _subjects(setting: Setting, data: Path) -> list[Subject]:
    size = "S" if setting.quick else "W"
    return [
        *(Subject(f"{kernel.upper()} {size}", "npb", (kernel, size), turns=TURNS.get(kernel, 1)) for kernel in KERNELS),
        *(Subject(f"Lua {script.stem}", "lua", (str(script),)) for script in sorted(LUA.glob("*.lua"))),
        Subject("bzip2 -9", "bzip2", ("-9", "-c"), data),
        Subject("minigzip -9", "minigzip", ("-9", "-c"), data),
    ]


def measure(setting: Setting, place: Path, subjects: Sequence[Subject]) -> dict[str, tuple[float, float]]:
    """Least seconds of each: plain, and as a pair. CommandFailed if they write different things."""
    least = {}
    for subject in subjects:
        setting.say(subject.name)
        runs = [
            [_measured(place / "built" / kind / subject.program, subject) for kind in ("plain", "pair")]
            for _ in range(setting.repeats)
        ]
        if len({written for pair in runs for _, written in pair}) > 1:
            raise CommandFailed(f"{subject.name}: the pair writes something else")
        least[subject.name] = (min(plain[0] for plain, _ in runs), min(pair[0] for _, pair in runs))
    return least


def _measured(program: Path, subject: Subject) -> tuple[float, bytes]:
    """Seconds of CPU time, and what it wrote the last time."""
    runs = [_timed(program, subject) for _ in range(subject.turns)]
    return sum(seconds for seconds, _ in runs), runs[-1][1]


def _timed(program: Path, subject: Subject) -> tuple[float, bytes]:
    with subject.stdin.open("rb") as stdin:
        process = subprocess.Popen([str(program), *subject.arguments], stdin=stdin, stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        written = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise CommandFailed(f"{program} {' '.join(subject.arguments)}: exit code {process.returncode}")
    return usage.ru_utime + usage.ru_stime, written


def judged(least: dict[str, tuple[float, float]], built: Sequence[Built]) -> Report:
    """The table of `least` (seconds plain, and as a pair) and `built`, and the targets."""
    ratios = {name: pair / plain for name, (plain, pair) in least.items()}
    columns = ("", "clang -O2", "hetcc -O2", "ratio")
    report = Report(f"toolchain: CPU time on {platform.machine()}, least of the runs", columns)
    for name, (plain, pair) in least.items():
        report.rows.append((name, f"{plain:.3f} s", f"{pair:.3f} s", f"{ratios[name]:.3f}"))
    for one in built:
        report.rows.append((f"{one.name}, code and data", *(f"{size // 1024} KiB" for size in one.sizes), one.ratio))
    for one in built:
        report.rows.append((f"{one.name}, built in", *(f"{seconds:.1f} s" for seconds in one.seconds), ""))
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    slowest = max(ratios, key=lambda name: ratios[name])
    lua = next(one for one in built if one.name == "lua")
    report.targets = [
        Target("geometric mean of all, times plain clang", mean, MEAN),
        Target(f"the slowest, {slowest}, times plain clang", ratios[slowest], WORST),
        Target("seconds in which hetcc builds Lua", lua.seconds[1], LUA_BUILT),
    ]
    report.raw.update(least=least, built=[vars(one) for one in built])
    return report
