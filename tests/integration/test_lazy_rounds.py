"""`imgproxy migrate --rounds --lazy`: all memory is at the destination at the commit, and put in its place after it."""

import json
import os
import signal
from pathlib import Path

import pytest

from tests.integration.test_lazy import assert_one_history, assert_whole_and_stopped, memchecks, named, recover
from tests.nodes import Node, Nodes, Program, assert_runs, migrate, start_cache, start_migrate, summary, until
from tests.programs.selfcheck import SelfCheck

pytestmark = pytest.mark.t2

MIB = 1 << 20
LAZY = ("--rounds", 1, "--lazy", "--compress", "off")


async def test_a_tree_with_threads(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a, size=8 * MIB, procs=3, threads=3)
    cache = await start_cache(b, "--allow-restore", criu=criu)
    done = await migrate(a, check.pid, cache.address, criu, *LAZY, "--json", deadline=120)
    assert done.code == 0, done.output
    await assert_runs(check, b)
    told = summary(done)
    assert told["outcome"] == "committed"
    assert "pages-following" not in told["bytes_by_kind"], "nothing is left to follow"
    phases = [line["phase"] for line in map(json.loads, done.stdout.splitlines()) if line["event"] == "phase"]
    assert any(phase.startswith("runs there, ") and "in its place" in phase for phase in phases)
    await check.finish()
    assert await cache.stop() == 0
    await until(lambda: not a.processes(), "nothing to be left at the source")
    await b.empty()


async def _migrating(nodes: Nodes, a: Node, b: Node, criu: Path) -> tuple[SelfCheck, Program, Program]:
    check = await nodes.start_memcheck(a, size=8 * MIB, procs=2)
    cache = await start_cache(b, "--allow-restore", criu=criu)
    return check, cache, start_migrate(a, check.pid, cache.address, criu, *LAZY, "--timeout", 10, "--reconnect", 1)


async def test_lost_there(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """All memory is at the destination, and yet the process dies there: the source has it still, as it was."""
    check, cache, migrating = await _migrating(nodes, a, b, criu_latest)
    await cache.wait_log("restored")
    (lazy_pages,) = named(b, " lazy-pages ")
    os.kill(lazy_pages, signal.SIGSTOP)
    await cache.wait_log("following")
    os.kill(lazy_pages, signal.SIGKILL)
    assert await migrating.wait() == 3
    assert migrating.stdout.startswith("lost: ")
    await cache.wait_log("lost")
    await assert_whole_and_stopped(check, a, b)
    again = await recover(a, "--run-here")
    assert again.code == 0, again.output
    await check.wait_progress()
    await check.verify_memory()


async def test_the_cache_killed_while_it_fills(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check, cache, migrating = await _migrating(nodes, a, b, criu_latest)
    await cache.wait_log("restored")
    os.kill(named(b, " lazy-pages ")[0], signal.SIGSTOP)
    await cache.wait_log("following")
    await cache.kill9()
    await assert_whole_and_stopped(check, a, b)
    await start_cache(b, "--allow-restore", criu=criu_latest, listen=cache.address)
    assert await migrating.wait() == 3
    assert (await recover(a, "--run-here")).code == 0
    await check.wait_progress()
    await check.verify_memory()


async def test_the_proxy_killed_while_the_cache_fills(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """Nothing is needed of it but the end of the tree here. The action script sees to that: it starts a recovery."""
    check, cache, migrating = await _migrating(nodes, a, b, criu_latest)
    await cache.wait_log("committed")
    await migrating.kill9()
    await cache.wait_log("running")
    await until(lambda: not memchecks(a, check), "the tree to be ended here")
    await assert_runs(check, b)


@pytest.mark.parametrize("victim", ["migrate", " dump ", " restore "])
async def test_killed_before_the_commit(nodes: Nodes, a: Node, b: Node, criu_latest: Path, victim: str) -> None:
    check, cache, migrating = await _migrating(nodes, a, b, criu_latest)
    await cache.wait_log("complete")
    for node in (a, b):
        for pid in named(node, victim):
            os.kill(pid, signal.SIGKILL)
    await migrating.wait()
    await assert_one_history(check, a, b)
