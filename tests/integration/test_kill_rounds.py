"""Kill -9 of every component in every round of a near-live migration, and after: the process runs on exactly one node.

Like test_kill, with pre-dumps, in the middle of which and between which somebody dies. They are those of a fake CRIU,
for this machine's kernel does not track changes; the dump, by the real one, comes to our page server, too.

What continuous integration runs is a part: IMGPROXY_KILLS=10 runs 210.
"""

import random
from pathlib import Path

import pytest

from tests.fake_rounds import go_on, planned, runs, told
from tests.integration.criu_death import stand_safely
from tests.integration.test_kill import (
    KILLS,
    SETTLED,
    VICTIMS,
    assert_all_ends,
    free_port,
    kill_all,
    restartable_cache,
    run_all,
    settle,
    tree_in,
    wait_moment,
)
from tests.nodes import Node, Nodes, Program, assert_runs, start_migrate, until

pytestmark = pytest.mark.t3

#: Runs in a batch.
BATCH = 3
#: What the pre-dumps do when somebody dies meanwhile: the one that waits, half-way or before its first word, is it.
PRE_DUMPS = {"in round 1": "waits", "between rounds": "good hesitates good", "in round 2": "good waits good"}
#: Seconds after CRIU was called for the dump within which somebody dies.
DUMP = 1.5
AFTER = {
    "complete": 0.15,
    "restored": 0.08,
    "committed": 0.08,
}  #: the cache's words, and a random part of so many seconds
DYING: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    **{name: (*VICTIMS[name], (*PRE_DUMPS, "in the dump", *AFTER)) for name in ("proxy", "cache", "restore")},
    "pre-dump": ("a", ("fake_rounds", " pre-dump -t"), tuple(PRE_DUMPS)),
    "dump": ("a", (" dump -t",), ("in the dump", *AFTER)),
    "dump-hook": (*VICTIMS["dump-hook"], ("in the dump", *AFTER)),
    "restore-hook": (*VICTIMS["restore-hook"], tuple(AFTER)),
}  #: where it runs, words of its command line, when it can die


@pytest.mark.parametrize("batch", range(KILLS))
@pytest.mark.parametrize("victim", DYING)
async def test_one_copy_whatever_dies(nodes: Nodes, criu_latest: Path, victim: str, batch: int) -> None:
    """A batch of runs, each with a victim's moment of its own."""

    async def one(a: Node, b: Node, seed: int) -> None:
        draw = random.Random(f"rounds {victim} {seed}")
        moment = draw.choice(DYING[victim][2])
        try:
            await _run(nodes, a, b, criu_latest, draw, victim, moment)
        except AssertionError as error:
            raise AssertionError(f"{moment}: {error}") from error

    await run_all(nodes, range(batch * BATCH, (batch + 1) * BATCH), one)


async def _run(nodes: Nodes, a: Node, b: Node, criu: Path, draw: random.Random, victim: str, moment: str) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20, procs=draw.choice([1, 1, 3]), threads=draw.choice([1, 2]))
    port, plan = free_port(), nodes.make_node_dir()
    cache = await restartable_cache(b, port, criu)
    command = planned(plan, criu, *PRE_DUMPS.get(moment, "good").split())
    proxy = start_migrate(a, check.pid, cache.address, command, "--rounds", 2, "--timeout", 20, "--reconnect", 3)
    await _wait_for(plan, cache, proxy, moment, draw)
    where, words, _ = DYING[victim]
    if victim == "dump":
        await stand_safely(a, check)
    kill_all(a if where == "a" else b, words)
    go_on(plan)
    if victim == "cache":
        await cache.wait()
        cache = await restartable_cache(b, port, criu)
    await settle(a, b, check, proxy, recover=victim in ("proxy", "cache"))
    await assert_runs(check, a if tree_in(a, check) else b)
    await assert_all_ends(a, b, check, cache)


async def _wait_for(plan: Path, cache: Program, proxy: Program, moment: str, draw: random.Random) -> None:
    if moment in PRE_DUMPS:
        await until(lambda: told(plan, "half-way"), moment, SETTLED)
    elif moment in AFTER:
        await wait_moment(cache, proxy, moment, draw.uniform(0, AFTER[moment]))
    else:
        await until(lambda: bool(runs(plan, "dump")), moment, SETTLED)
        await wait_moment(cache, proxy, None, draw.uniform(0, DUMP))
