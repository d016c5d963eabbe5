"""Running trees of processes go from this machine, x86-64, to a guest on aarch64, and come back: one of threads, one
that holds what CRIU carries beside memory (sockets, pipes, timers, signals, files, threads in system calls), and
programs that work: a kernel of NPB, and Lua.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.old_criu import Shim
from tests.nodes import Node, Nodes, Program, open_nodes, start_cache, start_proxy, until
from tests.programs import Programs
from tests.testbed.guest import guest
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.jobs import kernels, lua
from tests.testbed.journeys import Job, Journeys
from tests.testbed.there import There
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, output

pytestmark = pytest.mark.t3

#: Milliseconds that the program sleeps at a time: it must leave the guest, which has one processor, to others.
NAP = 100
#: Which kernel works. The part of its time within which what works leaves: it is to come back before it has ended.
KERNEL, EARLY = ("cg", "W"), 0.5
#: What holds all kinds of things looks at them so often: there, and here again. The lines that it writes.
LOOKS, KINDS = 2, 18
#: What CRIU must be told. Nobody else is at the connections, and a lock on them would stay in the firewall here, where
#: they would not work after coming back from a node that locks them otherwise: the guest has no iptables.
OPTIONS = ("--tcp-established", "--file-locks", "--network-lock=skip")
#: A command in a folder; and what has it look.
IN_FOLDER = 'cd "$0"; exec "$@"'
LOOK = 'cd "$0"; touch look-1; until [ -e ready-2 ]; do sleep 0.1; done; cat report-1'
RESTORE = ("sh", "-c", 'cd /run/there && criu restore --stream -D . -d -o log --action-script "$PWD/imgcache-hook"')
#: Has it go on that was stopped when it was dumped, and end; and shows what it wrote.
END = 'touch "$1"; pkill -CONT -f "^$2"; while pgrep -f "^$2" >/dev/null; do sleep 0.1; done; cat "$0"'


async def test_there_and_back_again(
    programs: Programs, make_node_dir: Callable[[], Path], criu_latest: Path, tmp_path: Path
) -> None:
    """All in one guest: to boot it and to start programs there takes longer than a move."""
    pair, working = tmp_path / "pair", []
    for build in (kernels, lua):
        (place := tmp_path / build.__name__).mkdir()
        working += [job for job in build(place) if build is lua or job.words == KERNEL]
    for name, sources in (
        ("crew", [PROGRAMS / "crew.c"]),
        ("belongings", sorted((PROGRAMS / "belongings").glob("*.c"))),
    ):
        output(make_toolchain(), "-O2", *sources, "-o", name, "--layout", pair, directory=tmp_path)
    async with guest("arm64") as vm, open_nodes(programs, make_node_dir) as nodes:
        there = There(vm)
        await there.open()
        here, other = await nodes.make(), await nodes.make()
        cache = await start_cache(other, "--allow-restore", criu=criu_latest)
        travellers = Travellers(there, nodes, here, cache, criu_latest, pair)
        await travellers.crew(tmp_path / "written", tmp_path / "stop")
        await travellers.belongings(make_node_dir())
        await travellers.by_remote(tmp_path / "written-there", tmp_path / "stop-there")
        await travellers.work(working, make_node_dir)


class Travellers:
    """All of them, one after the other."""

    def __init__(self, there: There, nodes: Nodes, here: Node, cache: Program, criu: Path, pair: Path) -> None:
        self.there, self.nodes, self.here, self.cache, self.criu, self.pair = there, nodes, here, cache, criu, pair

    async def crew(self, written: Path, stop: Path) -> None:
        """Six threads, in two processes that talk by pipes, one of them 10,000 frames deep: what they write is what
        those write that never moved."""
        there, crew = self.there, self.pair / "crew"
        await there.install(self.pair, "crew")
        pid = await self.nodes.start_quiet(self.here, crew, 2**30, written, NAP, stop)
        await there.bring(self.here, pid, self.criu, self.pair, "--rounds", "1")
        await self.here.empty()
        assert await there.threads(crew) == [1, 5]
        await there.bring_back(pid, self.cache, self.pair)
        assert await there.threads(crew) == []
        assert not written.exists(), "nobody has told it to end"
        stop.touch()
        await until(lambda: written.exists() and written.read_text().endswith("\n"), "the program to end")
        await self._alone()
        expected = written.with_name("expected")
        output(crew, written.read_text().split()[0], expected, 0)
        assert written.read_text() == expected.read_text()

    async def belongings(self, folder: Path) -> None:
        """In both places all of them are as they were."""
        there = self.there
        await there.install(self.pair, "belongings")
        words = ["sh", "-c", IN_FOLDER, folder, self.pair / "belongings", LOOKS]
        pid = await self.nodes.start_quiet(self.here, *words)
        await until((folder / "ready-1").exists, "it to be ready")
        await there.put_folder(folder)
        await there.bring(self.here, pid, self.criu, self.pair, *OPTIONS)
        told = await there.vm.run("sh", "-c", LOOK, folder, deadline=PATIENCE)
        assert wrong(told.stdout) == []
        await there.get_folder(folder)
        await there.bring_back(pid, self.cache, self.pair, *OPTIONS)
        (folder / "look-2").touch()
        await until((folder / "report-2").exists, "it to look at all")
        assert wrong((folder / "report-2").read_text()) == []
        await self._alone()

    async def by_remote(self, written: Path, stop: Path) -> None:
        """The six threads again, as `criu --remote` brings them: their stacks are in a pre-dump. They end there."""
        there, here, crew = self.there, self.here, self.pair / "crew"
        pid = await self.nodes.start_quiet(here, crew, 2**30, written, NAP, stop)
        done = await here.run("imgproxy", "trap", pid)
        assert done.code == 0, done.output
        for snapshot in ("s0", "s1"):
            (here.directory / snapshot).mkdir(mode=0o700)
        where = ["--remote", "-D", here.directory / "s0", "-D", here.directory / "s1"]
        proxy = await start_proxy(
            here, there.address, *where, "--insecure", "--arch", "aarch64", "--binaries", self.pair
        )
        shim, scratch = Shim(self.nodes, here, self.criu), self.nodes.make_node_dir()
        pre_dump = shim.start("predump", "-t", pid, snapshot="s0", scratch=scratch)
        assert await pre_dump.wait() == 0, pre_dump.stderr
        dump = shim.start("dump", "-t", pid, "--before", scratch, snapshot="s1", hook="imgproxy-hook")
        assert await dump.wait() == 0, dump.stderr
        assert (await proxy.ended()).code == 0, proxy.stderr
        await here.empty()
        done = await there.vm.run(*RESTORE, deadline=PATIENCE)
        assert done.code == 0, done.output
        done = await there.vm.run("sh", "-c", END, written, stop, crew, deadline=PATIENCE)
        expected = written.with_name("expected-there")
        output(crew, done.stdout.split()[0], expected, 0)
        assert done.stdout == expected.read_text()

    async def work(self, jobs: list[Job], make_folder: Callable[[], Path]) -> None:
        """They go there and come back while they work; all that they have done in the end is as if they had not."""
        journeys, draw = Journeys(self.there, self.nodes, self.criu, make_folder), random.Random(1)
        await journeys.open()
        for number, job in enumerate(jobs, 1):
            job.run_unmoved(make_folder())
            await self.there.install(job.pair, job.name)
            await journeys.go(job, draw, legs=2, latest=EARLY)
            assert journeys.changes == {"there": number, "back": number}, job.words

    async def _alone(self) -> None:
        node = self.cache.node
        await until(lambda: len(node.processes()) == 1, "the cache to be alone")


def wrong(report: str) -> list[str]:
    """What is not as it was."""
    lines = report.splitlines()
    assert len(lines) == KINDS, report
    return [line for line in lines if not line.endswith(": as it was")]
