"""Near-live migration beside one dump of the same process: what is sent while it stands still, and for how long.

It takes a kernel that tracks changes, so it runs in the test bed's amd64 guest, which is emulated, and whose time
passes with its instructions: a usual processor's, whatever the host does beside it. The process changes a part of its
memory each second, page after page, and goes from one node of the guest to the other and back, in turns with pre-dumps,
with these and a lazy restore, and with neither; it finds its own memory right after each move.
"""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import trio

from scripts.benchmarks.nodes import CommandFailed
from scripts.benchmarks.report import MIB, Report, Target
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Setting
from tests.programs import compile_program
from tests.programs.edges import Edge, assert_right, have_verified, parse
from tests.testbed.guest import PLACES, Guest, guest
from tests.testbed.guest_nodes import PATIENCE, GuestNode, open_nodes
from tests.testbed.machine import Hardware

#: Of its memory, each second; in steps, with a pause of so many microseconds after each.
CHANGED, PAUSE = 0.02, 10_000
#: Bytes of the last round, of all; and the time frozen, of that without pre-dumps.
LAST, FROZEN = 0.05, 0.25
#: Memory of the guest in sizes of the process: it, its images and its copy; and beside it, in MiB.
TIMES, BESIDE = 4, 1024
REPORT = "/run/process"
WAYS: dict[str, tuple[str, ...]] = {
    "rounds": ("--rounds", "auto"),
    "rounds, lazy": ("--rounds", "auto", "--lazy"),
    "one dump": (),
}
LINKS: dict[str, tuple[str, ...]] = {"loopback": (), "1 Gbit/s": ("--limit-rate", "125MB")}
HUGE = ("never", "always")
COLUMNS = ("", "pre-dumps", "first round", "last round", "of it", "frozen", "ratio")


@dataclass
class Case:
    """All moves with one choice of huge pages and link: what `imgproxy migrate` tells of each, by way."""

    huge: str
    link: str
    moves: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {way: [] for way in WAYS})

    def median(self, way: str, *path: str | int) -> float:
        """Of a number in the summaries."""
        return statistics.median(_at(one, path) for one in self.moves[way])

    def last_part(self, way: str) -> float:
        """Bytes of the last round, of those of one dump of everything."""
        return self.median(way, "rounds", -1) / self.median("one dump", "rounds", -1)

    def frozen_part(self, way: str) -> float:
        """Time frozen, of that by one dump."""
        return self.median(way, "frozen") / self.median("one dump", "frozen")

    def __str__(self) -> str:
        return f"{self.link}, huge pages {self.huge}"


def _at(found: Any, path: Sequence[str | int]) -> float:
    for step in path:
        found = found[step]
    return float(found)


class Process:
    """The one that is moved."""

    def __init__(self, vm: Guest, pid: int) -> None:
        self._vm, self.pid = vm, pid

    @classmethod
    async def start(cls, node: GuestNode, program: object, size: int, huge: str) -> "Process":
        """With its memory filled."""
        await node.run("sh", "-c", f"echo {huge} >/sys/kernel/mm/transparent_hugepage/enabled; rm -f {REPORT}")
        batch = max(1, round(size / 4096 * CHANGED * PAUSE / 1e6))
        numbers = {"size": size, "batch": batch, "pause": PAUSE}
        words = [f"--{name}={number}" for name, number in numbers.items()]
        await node.start_quiet(program, *words, "--report", REPORT)
        self = cls(node.vm, 0)
        self.pid = (await self._says(lambda one: one.steps > 10)).pid
        return self

    async def verify(self, node: GuestNode) -> None:
        """CommandFailed unless it runs on this node, and every page is right."""
        before = await self._says(lambda _: True)
        done = await node.run("kill", "-USR1", self.pid)
        if done.code:
            raise CommandFailed(f"the process is not where it was moved to: {done.output}")
        assert_right([await self._says(lambda one: have_verified([before], [one]))])

    async def end(self, node: GuestNode) -> None:
        """It gives its memory back."""
        await node.run("kill", "-TERM", self.pid)
        await self._says(lambda one: one.state == "bye")

    async def _says(self, wanted: Callable[[Edge], bool]) -> Edge:
        with trio.fail_after(PATIENCE):
            while True:
                found = parse((await self._vm.run("cat", REPORT)).stdout)
                if found and wanted(found[0]):
                    return found[0]


async def near_live(setting: Setting, workload: Workload) -> Report:
    """Compare at `workload`."""
    program = compile_program("edge", PLACES.cache)
    memory = workload.size // MIB * TIMES + BESIDE
    cases = [Case(huge, link) for huge in HUGE for link in LINKS]
    async with guest("amd64", Hardware(memory=f"{memory}M", steady=True)) as vm:
        nodes = await open_nodes(vm)
        for huge in HUGE:
            process = await Process.start(nodes[0], program, workload.size, huge)
            for case in cases:
                if case.huge == huge:
                    nodes = await _compare(setting, case, process, nodes)
            await process.end(nodes[0])
    return judged(workload, cases)


async def _compare(
    setting: Setting, case: Case, process: Process, nodes: tuple[GuestNode, GuestNode]
) -> tuple[GuestNode, GuestNode]:
    """There and back again, each way as often as asked for, in another order each time. The nodes: where it is comes
    first, before and after."""
    source, destination = nodes
    for number in range(setting.repeats):
        for way in WAYS if number % 2 == 0 else reversed(WAYS):
            options = ["--compress", "off", *WAYS[way], *LINKS[case.link]]
            done = await source.migrate(process.pid, destination, options)
            if done.code:
                raise CommandFailed(f"{case}, {way}: {done.output}")
            await process.verify(destination)
            case.moves[way].append(json.loads(done.stdout.splitlines()[-1]))
            setting.say(f"{case}, {way}, {number + 1}: frozen {case.moves[way][-1]['frozen']:.1f} s")
            source, destination = destination, source
    return source, destination


def judged(workload: Workload, cases: Sequence[Case]) -> Report:
    """The figures; the targets are for the first case."""
    title = f"near-live: {workload.size // MIB} MiB, {CHANGED:.0%} of it changed each second, in an emulated machine"
    report = Report(title, COLUMNS, raw={"cases": [vars(case) for case in cases]})
    for case in cases:
        report.rows.append((str(case), *[""] * (len(COLUMNS) - 1)))
        for way in WAYS:
            report.rows.append(_row(case, way))
        for name in case.moves["rounds"][0]["phases"]:
            first, second, last = (f"{case.median(way, 'phases', name):.2f} s" for way in WAYS)
            report.rows.append((f"    {name}", *[""] * (len(COLUMNS) - 3), f"{first}, {second}", f"of {last}"))
    report.targets.append(Target("last round, of one dump of everything", cases[0].last_part("rounds"), LAST))
    report.targets.append(Target("time frozen, of that by one dump", cases[0].frozen_part("rounds"), FROZEN))
    report.targets.append(Target("the same, restored lazily", cases[0].frozen_part("rounds, lazy"), FROZEN))
    return report


def _row(case: Case, way: str) -> tuple[str, ...]:
    rounds = [len(one["rounds"]) - 1 for one in case.moves[way]]
    first, last = (case.median(way, "rounds", index) / MIB for index in (0, -1))
    part, ratio = ("", "1.00")
    if way != "one dump":
        part, ratio = f"{case.last_part(way):.1%}", f"{case.frozen_part(way):.2f}"
    frozen = f"{case.median(way, 'frozen'):.2f} s"
    counts = (f"{statistics.median(rounds):g}", f"{first:.0f} MiB", f"{last:.0f} MiB")
    return (f"  {way}", *counts, part, frozen, ratio)
