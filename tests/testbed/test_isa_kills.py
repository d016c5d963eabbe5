"""`imgproxy migrate --arch` is killed at moments drawn from a seed: the process runs on in one place only, and runs.

A migration with a change of ISA stops the process first, as by SIGSTOP: whoever dies, it must not stay so. Each run is
a tree of six threads in two processes on its way from this machine to an aarch64 guest. `imgproxy migrate` is killed,
`imgproxy recover` is run, and the tree is told to end where it is: what it writes is what it writes unmoved. A run of
all tests leaves this out unless the variable is set:

    IMGPROXY_KILLS=10 IMGPROXY_SEED=7 scripts/test t3 -- tests/testbed/test_isa_kills.py
"""

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.nodes import Node, Nodes, Program, open_nodes, start_migrate, until
from tests.programs import Programs
from tests.programs.selfcheck import kill_and_wait
from tests.testbed.guest import guest
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.test_isa import NAP
from tests.testbed.there import There
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, output

pytestmark = pytest.mark.t3

KILLS = int(os.environ.get("IMGPROXY_KILLS", "1"))
BATCH = 5
SEED = int(os.environ.get("IMGPROXY_SEED", "1"))
#: When to kill: after what the cache has logged of it, plus a part of so many seconds. None: after the start, within as
#: many as a migration takes that nobody kills.
MOMENTS = [(None, 1.0), ("session opened", 1.0), ("complete", 0.5), ("restored", 0.2)]
#: CRIU, its action scripts and the commands that finish what was begun.
AT_WORK = (
    "dump --stream",
    "restore --stream",
    "imgproxy.hook",
    "imgcache.hook",
    "imgproxy.guardian",
    "imgproxy recover",
)


async def test_killed_at_random_moments(
    programs: Programs, make_node_dir: Callable[[], Path], criu_latest: Path, tmp_path: Path
) -> None:
    pair = tmp_path / "pair"
    output(make_toolchain(), "-O2", PROGRAMS / "crew.c", "-o", "crew", "--layout", pair, directory=tmp_path)
    draw = random.Random(SEED)
    ended: Counter[str] = Counter()
    async with guest("arm64") as vm, open_nodes(programs, make_node_dir) as nodes:
        there = There(vm)
        await there.open()
        await there.install(pair, "crew")
        node = await nodes.make()
        killing = Killing(there, nodes, node, criu_latest, pair, draw)
        ended[await killing.run(make_node_dir(), kill=False)] += 1
        assert ended == {"there": 1}
        for _ in range(BATCH * KILLS):
            ended[await killing.run(make_node_dir(), kill=True)] += 1
    print(f"where it ran on: {dict(ended)}")


class Killing:
    """Runs, one after the other."""

    def __init__(self, there: There, nodes: Nodes, node: Node, criu: Path, pair: Path, draw: random.Random) -> None:
        self.there, self.nodes, self.node, self.criu, self.pair, self.draw = there, nodes, node, criu, pair, draw
        self.seconds = 0.0
        self._runs = 0

    async def run(self, folder: Path, *, kill: bool) -> str:
        """One; where it ran on, "here" or "there"."""
        pid = await self.nodes.start_quiet(
            self.node, self.pair / "crew", 2**30, folder / "written", NAP, folder / "stop"
        )
        await self.there.put_folder(folder)
        begun = time.monotonic()
        self._runs += 1
        change = ["--arch", "aarch64", "--binaries", self.pair, "--insecure", "--session", f"run-{self._runs}"]
        proxy = start_migrate(self.node, pid, self.there.address, self.criu, *change)
        moment = "not"
        if kill:
            moment = await self._kill(proxy)
        else:
            assert await proxy.wait(PATIENCE) == 0, proxy.stderr
            self.seconds = time.monotonic() - begun
        await self._settle(proxy)
        where = await self._where()
        done = await (self._end_here if where == "here" else self._end_there)(folder)
        turns = done.split()[0]
        output(self.pair / "crew", turns, folder / "expected", 0)
        assert done == (folder / "expected").read_text(), f"killed {moment}, runs {where}"
        return where

    async def _kill(self, proxy: Program) -> str:
        """Kill it, unless it has ended before its moment comes; when that was."""
        event, spread = self.draw.choice(MOMENTS)
        delay = self.draw.uniform(0, spread if event else self.seconds)
        if event:
            await until(lambda: event in self.there.logged(f"run-{self._runs}") or proxy.dead, event, PATIENCE)
        with trio.move_on_after(delay):
            await proxy.wait(PATIENCE)
        if proxy.dead:
            return "too late"
        kill_and_wait(proxy.pid)
        return f"{delay:.3f} s after {event or 'the start'}"

    async def _settle(self, proxy: Program) -> None:
        """All that was begun has come to its end."""
        await proxy.wait()
        journal = self.node.directory / "migrations"
        done = await self.node.run("imgproxy", "recover", "--journal", journal, "--patience", 60, deadline=PATIENCE)
        assert done.code == 0, done.output
        await until(lambda: not self._at_work_here(), "every CRIU here to have ended", PATIENCE)
        words = "|".join(re.sub("([ .])", r"[\1]", word) for word in AT_WORK)  # which do not match themselves
        busy = 'while pgrep -f "$0" >/dev/null; do sleep 0.1; done'
        await self.there.vm.run("sh", "-c", busy, words, deadline=PATIENCE)

    def _at_work_here(self) -> bool:
        return any(word in command for command in self.node.processes().values() for word in AT_WORK)

    async def _where(self) -> str:
        """The one place where the tree is."""
        program = str(self.pair / "crew")
        here = [command for command in self.node.processes().values() if command.startswith(program)]
        there = (await self.there.vm.run("pgrep", "-f", f"^{program}")).stdout.split()
        assert sorted([len(here), len(there)]) == [0, 2], f"{here} here and {there} there"
        return "here" if here else "there"

    async def _end_here(self, folder: Path) -> str:
        written = folder / "written"
        (folder / "stop").touch()
        await until(lambda: written.exists() and written.read_text().endswith("\n"), "it to end here")
        await until(lambda: not self.node.processes(), "the tree to be gone")
        return written.read_text()

    async def _end_there(self, folder: Path) -> str:
        end = 'cd "$0"; touch stop; until grep -q . written; do sleep 0.1; done; cat written'
        return (await self.there.vm.run("sh", "-c", end, folder, deadline=PATIENCE)).stdout
