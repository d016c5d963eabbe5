"""Programs that work go from this machine, x86-64, to a guest on aarch64 and back, at moments drawn from a seed: NPB
kernels, and Lua in a loop. What they have done in the end is what they do unmoved.

A change of ISA takes seconds, and more where others work, too. A run of all tests leaves them out unless the variable
is set:

    IMGPROXY_ISA_MOVES=20 IMGPROXY_SEED=7 scripts/test t3 -- tests/testbed/test_isa_moves.py -k kernels
"""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nodes import open_nodes
from tests.programs import Programs
from tests.testbed.guest import guest
from tests.testbed.journeys import Job, Journeys
from tests.testbed.there import There
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, make, output, unpack

pytestmark = pytest.mark.t3

MOVES = int(os.environ.get("IMGPROXY_ISA_MOVES", "2"))
SEED = int(os.environ.get("IMGPROXY_SEED", "1"))
#: Kernels and classes, each of some tenths of a second here.
KERNELS = (("ep", "S"), ("is", "W"), ("cg", "W"), ("mg", "W"), ("ft", "S"), ("ft", "W"))
#: Lua programs, and how often one after the other: some seconds here.
LUA = ("coroutines", "errors", "objects", "strings")
TIMES = "6"


def kernels(place: Path) -> list[Job]:
    output(
        make_toolchain(),
        "-O2",
        *sorted((PROGRAMS / "npb").glob("*.c")),
        *("-o", "npb", "--layout", place / "pair", "-lm"),
        directory=place,
    )
    return [Job(place / "pair", "npb", words) for words in KERNELS]


def lua(place: Path) -> list[Job]:
    source = unpack("lua5.4", place / "source") / "src"
    make(source, "lua", f"CC={make_toolchain()}", "SYSCFLAGS=-DLUA_USE_POSIX")
    pair = lay_out(source / "lua", place / "pair")
    programs = [str(PROGRAMS / f"lua/{name}.lua") for name in LUA]
    return [Job(pair, "lua", (str(PROGRAMS / "again.lua"), TIMES, *programs))]


def lay_out(program: Path, pair: Path) -> Path:
    """What `hetcc --layout` would have made of a link that a Makefile did."""
    (pair / "bin").mkdir(parents=True)
    for isa in ("x86-64", "aarch64"):
        shutil.copy(f"{program}_{isa}", pair / "bin")
    shutil.copy(program, pair)
    return pair


@pytest.mark.parametrize("made", [kernels, lua])
async def test_at_random_moments(
    made: Callable[[Path], list[Job]],
    programs: Programs,
    make_node_dir: Callable[[], Path],
    criu_latest: Path,
    tmp_path: Path,
) -> None:
    await travel(made(tmp_path), programs, make_node_dir, criu_latest)


async def travel(jobs: list[Job], programs: Programs, make_node_dir: Callable[[], Path], criu: Path) -> None:
    """Journeys of these jobs until there were enough changes of ISA."""
    draw = random.Random(SEED)
    for job in jobs:
        job.run_unmoved(make_node_dir())
    async with guest("arm64") as vm, open_nodes(programs, make_node_dir) as nodes:
        there = There(vm)
        await there.open()
        for pair, name in {(job.pair, job.name) for job in jobs}:
            await there.install(pair, name)
        journeys = Journeys(there, nodes, criu, make_node_dir)
        await journeys.open()
        while sum(journeys.changes.values()) < MOVES:
            await journeys.go(draw.choice(jobs), draw)
    print(f"changes of ISA: {journeys.changes}")
