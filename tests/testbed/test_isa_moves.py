"""Programs that work go from this machine, x86-64, to a guest on aarch64 and back, at moments drawn from a seed: NPB
kernels, Lua in a loop, sqlite3 that writes to a file, Lua's own tests where IMGPROXY_LUA_TESTS names them. What they
have done in the end is what they do unmoved.

A change of ISA takes seconds, and more where others work, too; sqlite3 takes minutes to be built. A run of all tests
leaves them out unless the variable is set; it has one kernel and Lua there and back, in test_isa.py.

    IMGPROXY_ISA_MOVES=20 IMGPROXY_SEED=7 scripts/test t3 -- tests/testbed/test_isa_moves.py -k kernels
"""

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nodes import open_nodes
from tests.programs import Programs
from tests.testbed.guest import guest
from tests.testbed.jobs import kernels, lua, sqlite, suite
from tests.testbed.journeys import Job, Journeys
from tests.testbed.there import There
from tests.toolchain.lua import SUITE

pytestmark = pytest.mark.t3

MOVES = int(os.environ.get("IMGPROXY_ISA_MOVES", "2"))
SEED = int(os.environ.get("IMGPROXY_SEED", "1"))


@pytest.mark.parametrize("made", [kernels, lua, sqlite, *([suite] if SUITE else [])])
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
