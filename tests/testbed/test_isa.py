"""A running tree of processes goes from this machine, x86-64, to a guest on aarch64, and comes back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nodes import Node, Program, migrate, open_nodes, start_cache, until
from tests.programs import Programs
from tests.testbed.guest import Guest, guest
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.machine import HOST
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, output

pytestmark = pytest.mark.t3

#: Milliseconds that the program sleeps at a time: it must leave the guest, which has one processor, to others.
NAP = 100


class There:
    """A guest in which programs go on: a cache that runs restores, and `imgproxy` loaded, for the way back."""

    def __init__(self, vm: Guest, pair: Path, name: str) -> None:
        self.vm, self.pair, self.name = vm, pair, name
        self.address = ""
        self._back = 0

    async def open(self) -> None:
        """Both executables, and the guest's at the place that it has here; the programs of the project."""
        assert (await self.vm.run("mkdir", "-p", self.pair / "bin")).code == 0
        for path in (self.pair / "bin").iterdir():
            await self.vm.put(path, str(path), 0o755)
        program = self.pair / self.name
        assert (await self.vm.run("cp", self.pair / f"bin/{self.name}_aarch64", program)).code == 0
        assert (await self.vm.run("mkdir", "-m", "700", "/run/there")).code == 0
        listen = ["--listen", "0.0.0.0:7000", "--insecure", "--allow-restore"]
        cache = await self.vm.start("imgcache", "-D", "/run/there", *listen)
        self._source = await self.vm.start("python3", "-m", "tests.testbed.preloaded")
        await cache.wait_stderr('"ready"', PATIENCE)
        self.address = f"127.0.0.1:{await self.vm.forward(7000)}"

    async def bring(self, node: Node, pid: int, criu: Path, *options: str) -> None:
        """`imgproxy migrate` on a node here."""
        change = ["--arch", "aarch64", "--binaries", self.pair, "--insecure", *options]
        done = await migrate(node, pid, self.address, criu, *change, deadline=PATIENCE)
        assert done.code == 0, done.output

    async def bring_back(self, pid: int, cache: Program) -> None:
        """`imgproxy migrate` in the guest, to a cache here."""
        self._back += 1
        words = ["migrate", str(pid), "--to", f"{HOST}:{cache.address.rpartition(':')[2]}", "--insecure"]
        words += ["--arch", "x86-64", "--binaries", str(self.pair), "--journal", "/run/journal"]
        await self._source.wait_stderr("ready", PATIENCE)
        await self._source.write(json.dumps([words, "/run/out", "/run/err"]).encode() + b"\n")
        told = await self._source.wait_stderr(f"run {self._back} ended: ", PATIENCE)
        assert told.rstrip().endswith(": 0"), (await self.vm.get("/run/err")).decode()

    async def threads(self) -> list[int]:
        """How many threads each process of the program has in the guest."""
        script = 'for pid in $(pgrep -f "^$0"); do ls /proc/$pid/task | wc -l; done'
        return sorted(map(int, (await self.vm.run("sh", "-c", script, self.pair / self.name)).stdout.split()))


async def test_there_and_back_again(
    programs: Programs, make_node_dir: Callable[[], Path], criu_latest: Path, tmp_path: Path
) -> None:
    """Six threads, in two processes that talk by pipes, one of them 10,000 frames deep: what they write is what those
    write that never moved."""
    pair, written, stop = tmp_path / "pair", tmp_path / "written", tmp_path / "stop"
    output(make_toolchain(), "-O2", PROGRAMS / "crew.c", "-o", "crew", "--layout", pair, directory=tmp_path)
    async with guest("arm64") as vm, open_nodes(programs, make_node_dir) as nodes:
        there = There(vm, pair, "crew")
        await there.open()
        here, other = await nodes.make(), await nodes.make()
        pid = await nodes.start_quiet(here, pair / "crew", 2**30, written, NAP, stop)
        await there.bring(here, pid, criu_latest, "--rounds", "1")
        assert not here.processes()
        assert await there.threads() == [1, 5]
        await there.bring_back(pid, await start_cache(other, "--allow-restore", criu=criu_latest))
        assert await there.threads() == []
        await finish(other, written, stop)
    turns = int(written.read_text().split()[0])
    output(pair / "crew", turns, tmp_path / "expected", 0)
    assert written.read_text() == (tmp_path / "expected").read_text()


async def finish(node: Node, written: Path, stop: Path) -> None:
    """It runs on the node, and ends there when it is told to."""
    assert not written.exists(), "nobody has told it to end"
    stop.touch()
    await until(lambda: written.exists() and written.read_text().endswith("\n"), "the program to write what came out")
    await until(lambda: len(node.processes()) == 1, "the cache to be alone")
