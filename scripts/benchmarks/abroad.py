"""A whole migration of a small process from one machine to another: of the other ISA, and, in turns, of the same.

All three are emulated, with the same kernel, CRIU and programs: the source is x86-64. (From a real one there would be
nothing to compare with: no emulated x86-64 has all that its CPU has, and `imgproxy migrate` sees to that.) The process
is a program of hetcc's in both cases, is new each time, and ends where it came to.
"""

import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from scripts.benchmarks.isa import FRAMES, SOURCE, THREADS
from scripts.benchmarks.nodes import CommandFailed
from scripts.benchmarks.pairs import run
from scripts.benchmarks.report import MIB, Report
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Setting
from tests.testbed.guest import Guest, guest
from tests.testbed.guest_nodes import GuestNode
from tests.testbed.machine import HOST

PORT = 7000
PHASES = ("dump and send", "last bytes", "restore", "resume there")
#: Starts the program as CRIU likes it, below a shell that buries it; and says its pid when it is ready.
START = '(setsid "$@" </dev/null; echo ended) >/run/said 2>&1 & echo started >&2; wait'
READY = "until grep -x 'ready\\|ended' /run/said; do sleep 0.1; done; cat /run/said >&2; pgrep -x stacks"
#: Ends it, and waits for that.
END = "pkill -KILL -x stacks; while pgrep -x stacks; do sleep 0.1; done"


@dataclass
class Way:
    """To a machine of one ISA: seconds of each `imgproxy migrate` from its start to its end, and what it told."""

    isa: str
    options: Sequence[str] = ()
    seconds: list[float] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)

    @property
    def frozen(self) -> float:
        """The median."""
        return statistics.median(float(one["frozen"]) for one in self.told)

    def phase(self, name: str) -> float:
        """The median."""
        return statistics.median(float(one["phases"][name]) for one in self.told)

    def __str__(self) -> str:
        return " ".join(["to", self.isa, *self.options[:1]])


async def abroad(setting: Setting, workload: Workload) -> Report:
    """Measure with `workload`'s memory."""
    pair = setting.directory / "stacks"
    run(["hetcc", "-O2", SOURCE, "-o", "stacks", "--layout", pair])
    ways = [Way("x86-64"), Way("aarch64", ["--arch", "aarch64", "--binaries", str(pair)])]
    async with guest("amd64") as here, guest("amd64") as same, guest("arm64") as other:
        source = GuestNode(here, "source", 20000, ["127.0.0.1:7001"])
        destinations = [GuestNode(vm, "there", 10000, [f"0.0.0.0:{PORT}", "--insecure"]) for vm in (same, other)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_open, source, pair, "x86-64")
            for way, node in zip(ways, destinations, strict=True):
                nursery.start_soon(_open, node, pair, way.isa)
        for node in destinations:
            node.address = f"{HOST}:{await node.vm.forward(PORT)}"
        both = list(zip(ways, destinations, strict=True))
        for number in range(setting.repeats):
            for way, node in both if number % 2 == 0 else reversed(both):
                await _go(source, node, way, [pair / "stacks", THREADS, FRAMES, workload.size])
                setting.say(f"{way}: {way.seconds[-1]:.2f} s, frozen {way.told[-1]['frozen']:.2f} s")
    return judged(workload, ways)


async def _open(node: GuestNode, pair: Path, isa: str) -> None:
    """A cache that restores, `imgproxy` loaded, and the program where it is here."""
    await _must(node.vm, "mkdir", "-p", pair / "bin")
    for one in ("x86-64", "aarch64"):
        await node.vm.put(pair / f"bin/stacks_{one}", f"{pair}/bin/stacks_{one}", 0o755)
    await _must(node.vm, "cp", pair / f"bin/stacks_{isa}", pair / "stacks")
    await _must(node.vm, "sh", "-c", "echo ready >/run/said")  # it has that open
    await node.open()


async def _go(source: GuestNode, node: GuestNode, way: Way, command: Sequence[object]) -> None:
    """One process, there."""
    await (await source.start("sh", "-c", START, "start", *command)).wait_stderr("started")
    pid = int((await _must(source, "sh", "-c", READY)).split()[-1])
    began = time.monotonic()
    done = await source.migrate(pid, node, way.options)
    if done.code:
        raise CommandFailed(f"{way}: {done.output}")
    way.seconds.append(time.monotonic() - began)
    way.told.append(json.loads(done.stdout.splitlines()[-1]))
    await _must(node, "sh", "-c", END)


async def _must(place: Guest | GuestNode, *words: object) -> str:
    done = await place.run(*words)
    if done.code:
        raise CommandFailed(f"{words}: {done.output}")
    return done.stdout


def judged(workload: Workload, ways: Sequence[Way]) -> Report:
    """The table, without targets: nobody has set any."""
    title = f"abroad: {THREADS} threads of {FRAMES} frames, {workload.size // MIB} MiB, between emulated machines"
    report = Report(title, ("", "imgproxy migrate", "frozen", *PHASES))
    for way in ways:
        times = (statistics.median(way.seconds), way.frozen, *(way.phase(name) for name in PHASES))
        report.rows.append((str(way), *(f"{seconds:.2f} s" for seconds in times)))
    report.raw["ways"] = [{"isa": way.isa, "seconds": way.seconds, "told": way.told} for way in ways]
    return report
