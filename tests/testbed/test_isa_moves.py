"""Programs that work go from this machine, x86-64, to a guest on aarch64 and back, at moments drawn from a seed: NPB
kernels, Lua in a loop, sqlite3 that writes to a file, Lua's own tests where IMGPROXY_LUA_TESTS names them. What they
have done in the end is what they do unmoved.

A change of ISA takes seconds, and more where others work, too; sqlite3 takes minutes to be built. A run of all tests
leaves them out unless the variable is set:

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
from tests.testbed.journeys import WRITTEN, Job, Journeys
from tests.testbed.there import There
from tests.toolchain import lua as lua54
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, make, output, unpack
from tests.toolchain.test_sqlite import FLAGS

pytestmark = pytest.mark.t3

MOVES = int(os.environ.get("IMGPROXY_ISA_MOVES", "2"))
SEED = int(os.environ.get("IMGPROXY_SEED", "1"))
#: Kernels and classes, each of some tenths of a second here.
KERNELS = (("ep", "S"), ("is", "W"), ("cg", "W"), ("mg", "W"), ("ft", "S"), ("ft", "W"))
#: Lua programs, and how often one after the other: some seconds here.
LUA = ("coroutines", "errors", "objects", "strings")
TIMES = "6"
#: How often Lua's own tests run, one after the other.
SUITES = "3"


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
    pair = lay_out(lua54.pair(make_toolchain(), place / "source"), place / "pair")
    programs = [str(PROGRAMS / f"lua/{name}.lua") for name in LUA]
    return [Job(pair, "lua", (str(PROGRAMS / "again.lua"), TIMES, *programs))]


def sqlite(place: Path) -> list[Job]:
    source = unpack("sqlite3", place / "source")
    output("./configure", "--disable-tcl", "--disable-readline", directory=source)
    make(source, "sqlite3.c", "shell.c")
    layout = ("-o", "sqlite", "--layout", place / "pair", "-lpthread", "-lm")
    output(make_toolchain(), "-O2", *FLAGS, source / "sqlite3.c", source / "shell.c", *layout, directory=place)
    return [sqlite_job(place / "pair")]


def sqlite_job(pair: Path) -> Job:
    """Some of its statements must fail."""
    return Job(pair, "sqlite", ("file.db",), PROGRAMS / "sqlite/workload.sql", options=("--file-locks",), code=1)


def suite(place: Path) -> list[Job]:
    """Lua's own tests, in a loop."""
    (job,) = lua(place)
    files = sorted(lua54.suite(place / "suite").glob("*.lua"))
    words = (str(PROGRAMS / "suite.lua"), SUITES, WRITTEN)
    return [Job(job.pair, "lua", words, files=tuple(files), stdout="/dev/null")]


def lay_out(program: Path, pair: Path) -> Path:
    """What `hetcc --layout` would have made of a link that a Makefile did."""
    (pair / "bin").mkdir(parents=True)
    for isa in ("x86-64", "aarch64"):
        shutil.copy(f"{program}_{isa}", pair / "bin")
    shutil.copy(program, pair)
    return pair


@pytest.mark.parametrize("made", [kernels, lua, sqlite, *([suite] if lua54.SUITE else [])])
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
