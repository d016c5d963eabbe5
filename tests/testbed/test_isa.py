"""A running tree of processes goes from this machine, x86-64, to a guest on aarch64, and comes back."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nodes import Node, migrate, open_nodes, start_cache, until
from tests.programs import Programs
from tests.testbed.guest import Command, Guest, guest
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.machine import HOST
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, output

pytestmark = pytest.mark.t3

PROGRAM = "crew"
THERE = "/run/there"
#: Milliseconds that the program sleeps at a time: it must leave the guest, which has one processor, to others.
NAP = 100


async def put_pair(vm: Guest, pair: Path) -> None:
    """Both executables, and the guest's at the place that it has here."""
    assert (await vm.run("mkdir", "-p", pair / "bin")).code == 0
    for name in ("x86-64", "aarch64"):
        await vm.put(pair / f"bin/{PROGRAM}_{name}", str(pair / f"bin/{PROGRAM}_{name}"), 0o755)
    assert (await vm.run("cp", pair / f"bin/{PROGRAM}_aarch64", pair / PROGRAM)).code == 0


async def start_there(vm: Guest) -> tuple[str, Command]:
    """A cache in the guest, and `imgproxy` loaded: how the one is reached, and the other."""
    assert (await vm.run("mkdir", "-m", "700", THERE)).code == 0
    listen = ["--listen", "0.0.0.0:7000", "--insecure", "--allow-restore"]
    cache = await vm.start("imgcache", "-D", THERE, *listen)
    source = await vm.start("python3", "-m", "tests.testbed.preloaded")
    await cache.wait_stderr('"ready"', PATIENCE)
    return f"127.0.0.1:{await vm.forward(7000)}", source


async def threads_there(vm: Guest, pair: Path) -> list[int]:
    """How many threads each process of the program has in the guest."""
    script = 'for pid in $(pgrep -f "^$0"); do ls /proc/$pid/task | wc -l; done'
    return sorted(map(int, (await vm.run("sh", "-c", script, pair / PROGRAM)).stdout.split()))


async def bring_back(vm: Guest, source: Command, pid: int, pair: Path, to: str) -> None:
    """`imgproxy migrate` in the guest, to a cache here."""
    words = ["migrate", str(pid), "--to", f"{HOST}:{to.rpartition(':')[2]}", "--insecure", "--journal", "/run/journal"]
    words += ["--arch", "x86-64", "--binaries", str(pair)]
    await source.wait_stderr("ready", PATIENCE)
    await source.write(json.dumps([words, "/run/out", "/run/err"]).encode() + b"\n")
    told = await source.wait_stderr("run 1 ended: ", PATIENCE)
    assert told.rstrip().endswith(": 0"), (await vm.get("/run/err")).decode()


async def test_there_and_back_again(
    programs: Programs, make_node_dir: Callable[[], Path], criu_latest: Path, tmp_path: Path
) -> None:
    """Six threads, in two processes that talk by pipes, one of them 10,000 frames deep: what they write is what those
    write that never moved."""
    pair, written, stop = tmp_path / "pair", tmp_path / "written", tmp_path / "stop"
    output(make_toolchain(), "-O2", PROGRAMS / "crew.c", "-o", PROGRAM, "--layout", pair, directory=tmp_path)
    async with guest("arm64") as vm, open_nodes(programs, make_node_dir) as nodes:
        await put_pair(vm, pair)
        address, source = await start_there(vm)
        here, other = await nodes.make(), await nodes.make()
        pid = await nodes.start_quiet(here, pair / PROGRAM, 2**30, written, NAP, stop)
        change = ["--arch", "aarch64", "--binaries", pair, "--insecure"]
        done = await migrate(here, pid, address, criu_latest, *change, deadline=PATIENCE)
        assert done.code == 0, done.output
        assert not here.processes()
        assert await threads_there(vm, pair) == [1, 5]
        cache = await start_cache(other, "--allow-restore", criu=criu_latest)
        await bring_back(vm, source, pid, pair, cache.address)
        assert await threads_there(vm, pair) == []
        await finish(other, written, stop)
    turns = int(written.read_text().split()[0])
    output(pair / PROGRAM, turns, tmp_path / "expected", 0)
    assert written.read_text() == (tmp_path / "expected").read_text()


async def finish(node: Node, written: Path, stop: Path) -> None:
    """It runs on the node, and ends there when it is told to."""
    assert not written.exists(), "nobody has told it to end"
    stop.touch()
    await until(lambda: written.exists() and written.read_text().endswith("\n"), "the program to write what came out")
    assert len(node.processes()) == 1, "the cache alone"
