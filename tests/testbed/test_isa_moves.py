"""Kernels of the NAS Parallel Benchmarks go from this machine, x86-64, to a guest on aarch64 at moments drawn from a
seed, and some of them back at another: what they print, the verification and all digits, is what they print unmoved.

A move takes a quarter of a minute, more where others work, too. A run of all tests leaves them out unless the variable
is set:

    IMGPROXY_ISA_MOVES=20 IMGPROXY_SEED=7 scripts/test t3 -- tests/testbed/test_isa_moves.py
"""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from imgproxy.trap import status_of
from tests.nodes import Node, Nodes, Program, open_nodes, start_cache, until
from tests.programs import Programs
from tests.testbed.guest import guest
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.test_isa import There
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, output

pytestmark = pytest.mark.t3

MOVES = int(os.environ.get("IMGPROXY_ISA_MOVES", "2"))
SEED = int(os.environ.get("IMGPROXY_SEED", "1"))
#: Kernels and classes, each of some tenths of a second here.
KERNELS = (("ep", "S"), ("cg", "W"), ("mg", "W"), ("ft", "S"), ("ft", "W"))
#: The part of its time within which a kernel is stopped here, and the seconds there: it is about ten times slower.
LATEST, STAY = 0.8, 1.0
#: Waits until a process has ended, and shows what it has written.
ENDED = 'while kill -0 "$0" 2>/dev/null; do sleep 0.1; done; cat "$1"'


class Kernel:
    """One, with what it prints and how long it takes."""

    def __init__(self, pair: Path, words: tuple[str, str]) -> None:
        self.words = words
        begun = time.monotonic()
        self.expected = output(pair / "npb", *words).decode()
        self.seconds = time.monotonic() - begun
        assert self.expected.endswith("\nSUCCESSFUL\n")


async def start_and_stop(nodes: Nodes, node: Node, pair: Path, kernel: Kernel, written: Path, seconds: float) -> int:
    """Run it for a while; its pid in the node. Where it was faster than expected it is run again, for less time."""
    script = f'exec "$0" {" ".join(kernel.words)} >{written}'
    while True:
        pid = await nodes.start_quiet(node, "sh", "-c", script, pair / "npb")
        await until(
            lambda: bool(running(node, pair)) or (written.exists() and written.stat().st_size > 0), "it to start"
        )
        await trio.sleep(seconds)
        for inside in running(node, pair):
            with suppress(ProcessLookupError):
                os.kill(inside, signal.SIGSTOP)
                await until(lambda: _is_stopped(node, pair), "it to stop")
                return pid
        seconds /= 2


def _is_stopped(node: Node, pair: Path) -> bool:
    return all(status_of(pid)["State"][0] == "T" for pid in running(node, pair))


def running(node: Node, pair: Path) -> list[int]:
    """The kernels on a node, by their pids here."""
    return [pid for pid, words in node.processes().items() if words.startswith(f"{pair}/npb ")]


async def go_on_there(there: There, pid: int, written: Path) -> str:
    """Let it go on in the guest, to its end; what it has written."""
    await there.vm.run("kill", "-CONT", pid)
    return (await there.vm.run("sh", "-c", ENDED, pid, written, deadline=PATIENCE)).stdout


async def go_on_and_back(there: There, pid: int, pair: Path, cache: Program, written: Path, seconds: float) -> str:
    """Let it go on in the guest for a while, and here to its end; what it has written."""
    stay = 'kill -CONT "$0"; sleep "$1"; kill -STOP "$0"'
    await there.vm.run("sh", "-c", stay, pid, f"{seconds:.3f}")
    await there.bring_back(pid, cache)
    (inside,) = running(cache.node, pair)
    os.kill(inside, signal.SIGCONT)
    await until(lambda: not running(cache.node, pair), "it to end")
    return written.read_text()


async def test_kernels_at_random_moments(
    programs: Programs, make_node_dir: Callable[[], Path], criu_latest: Path, tmp_path: Path
) -> None:
    pair, sources = tmp_path / "pair", sorted((PROGRAMS / "npb").glob("*.c"))
    output(make_toolchain(), "-O2", *sources, "-o", "npb", "--layout", pair, "-lm", directory=tmp_path)
    draw = random.Random(SEED)
    kernels = [Kernel(pair, words) for words in KERNELS]
    async with guest("arm64") as vm, open_nodes(programs, make_node_dir) as nodes:
        there = There(vm, pair, "npb")
        await there.open()
        here, other = await nodes.make(), await nodes.make()
        cache = await start_cache(other, "--allow-restore", criu=criu_latest)
        for move in range(MOVES):
            kernel, written = draw.choice(kernels), tmp_path / f"written-{move}"
            pid = await start_and_stop(nodes, here, pair, kernel, written, draw.uniform(0, LATEST * kernel.seconds))
            await vm.put(written, str(written))
            await there.bring(here, pid, criu_latest)
            if move % 2:
                told = await go_on_and_back(there, pid, pair, cache, written, draw.uniform(0, STAY))
            else:
                told = await go_on_there(there, pid, written)
            assert told == kernel.expected, f"move {move} of {kernel.words}"
