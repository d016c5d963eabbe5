"""Kill -9 of every component at every phase: the process runs on exactly one node afterwards, and nothing is left over.

Each run migrates a self-checking tree, kills one component at a moment drawn from the seed, and does what an operator
or a service manager would do: starts a killed cache again, and runs `imgproxy recover` where a proxy was killed or
could not reach its cache. Then the tree must run in one node, whole, its memory right, its history without a second
copy or a step back.
"""

import os
import random
import socket
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import pytest
import trio

from tests.integration.criu_death import stand_safely
from tests.nodes import Node, Nodes, Program, assert_runs, start_cache, start_migrate, until
from tests.programs.selfcheck import SelfCheck, kill_and_wait

pytestmark = pytest.mark.t3

#: What is killed, and in which node it runs: words of its command line.
VICTIMS = {
    "proxy": ("a", ("imgproxy", "migrate")),
    "cache": ("b", ("imgcache", "--listen")),
    "dump": ("a", ("dump", "--stream")),
    "restore": ("b", ("restore", "--stream")),
    "dump-hook": ("a", ("imgproxy.hook",)),
    "restore-hook": ("b", ("imgcache.hook",)),
}
#: Runs in a batch, and how many of them at once: two cores have room for that.
BATCH, AT_ONCE = 5, 3
#: Batches for each victim: 5 runs each, 30 in all; IMGPROXY_KILLS=10 makes 300.
KILLS = int(os.environ.get("IMGPROXY_KILLS", "1"))
#: When to kill: after what the cache has logged (None: after the start), plus a random part of so many seconds.
MOMENTS = [(None, 1.2), ("session opened", 0.3), ("complete", 0.15), ("restored", 0.08), ("committed", 0.08)]
#: Seconds within which all is settled, a lost peer's timeouts included.
SETTLED = 120.0


def free_port() -> int:
    """A port that is free now: the cache is started again on the same."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
        return free


@pytest.mark.parametrize(("victim", "batch"), [(victim, batch) for victim in VICTIMS for batch in range(KILLS)])
async def test_one_copy_whatever_dies(nodes: Nodes, criu_latest: Path, victim: str, batch: int) -> None:
    """A batch of runs, each with a victim's moment of its own."""

    async def one(a: Node, b: Node, seed: int) -> None:
        await _run(nodes, a, b, criu_latest, random.Random(f"{victim} {seed}"), victim)

    await run_all(nodes, range(batch * BATCH, (batch + 1) * BATCH), one)


async def run_all(nodes: Nodes, seeds: Iterable[int], run: Callable[[Node, Node, int], Awaitable[None]]) -> None:
    """Several runs at once, each with two nodes of its own; what fails names its seed."""
    free = trio.CapacityLimiter(AT_ONCE)

    async def one(seed: int) -> None:
        async with free:
            a, b = await nodes.make(), await nodes.make()
            try:
                await run(a, b, seed)
            except AssertionError as error:
                seen = "\n".join([*a.told(), *b.told()])
                raise AssertionError(f"seed {seed}: {error}\n{seen}") from error

    async with trio.open_nursery() as nursery:
        for seed in seeds:
            nursery.start_soon(one, seed)


async def _run(nodes: Nodes, a: Node, b: Node, criu: Path, draw: random.Random, victim: str) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20, procs=draw.choice([1, 1, 3]), threads=draw.choice([1, 2]))
    port = free_port()
    cache = await restartable_cache(b, port, criu)
    proxy = start_migrate(a, check.pid, cache.address, criu, "--timeout", 20, "--reconnect", 3)
    event, spread = draw.choice(MOMENTS)
    await wait_moment(cache, proxy, event, draw.uniform(0, spread))
    where, words = VICTIMS[victim]
    if victim == "dump":
        await stand_safely(a, check)
    kill_all(a if where == "a" else b, words)
    if victim == "cache":
        await cache.wait()
        cache = await restartable_cache(b, port, criu)
    await settle(a, b, check, proxy, recover=victim in ("proxy", "cache"))
    await assert_runs(check, a if tree_in(a, check) else b)
    await assert_all_ends(a, b, check, cache)


async def restartable_cache(node: Node, port: int, criu: Path) -> Program:
    listen = f"127.0.0.1:{port}"
    return await start_cache(node, "--allow-restore", "--source-timeout", 3, listen=listen, criu=criu)


async def wait_moment(cache: Program, proxy: Program, event: str | None, delay: float) -> None:
    """Wait for the moment; a migration that is over before has passed it."""
    if event is not None:
        async with trio.open_nursery() as nursery:

            async def over() -> None:
                await proxy.wait(SETTLED)
                nursery.cancel_scope.cancel()

            nursery.start_soon(over)
            await cache.wait_log(event, SETTLED)
            nursery.cancel_scope.cancel()
    with trio.move_on_after(delay):
        await proxy.wait(SETTLED)


def kill_all(node: Node, words: tuple[str, ...]) -> None:
    for pid, command in node.processes().items():
        if all(word in command for word in words):
            kill_and_wait(pid)


async def settle(a: Node, b: Node, check: SelfCheck, proxy: Program, *, recover: bool) -> None:
    """Wait until the proxy has ended and the tree is in one node only, with no CRIU at work on it."""
    await proxy.wait(SETTLED)
    if recover:
        journal = a.directory / "migrations"
        done = await a.run("imgproxy", "recover", "--journal", journal, "--patience", 10, deadline=SETTLED)
        assert done.code == 0, done.output
    await until(lambda: not at_work(a) and not at_work(b), "every CRIU to have ended", SETTLED)
    await until(lambda: bool(tree_in(a, check)) != bool(tree_in(b, check)), "the tree to be in one node", SETTLED)


def at_work(node: Node) -> list[str]:
    """CRIUs and action scripts that run in the node."""
    words = (
        " dump -t",
        " pre-dump -t",
        "dump --stream",
        "restore --stream",
        "imgproxy.hook",
        "imgcache.hook",
        "imgproxy recover",
    )
    return [command for command in node.processes().values() if any(word in command for word in words)]


def tree_in(node: Node, check: SelfCheck) -> list[int]:
    """The tree's processes in a node."""
    return [pid for pid in check.pids() if pid in node.processes()]


async def assert_all_ends(a: Node, b: Node, check: SelfCheck, cache: Program) -> None:
    """End all, and see that nothing is left: no process, socket, script or images directory."""
    await check.finish()
    assert await cache.stop() == 0
    await until(lambda: not a.processes() and not b.processes(), "everything to be gone")
    for node in (a, b):
        left = {name for name in node.files() if "journal" not in name and "migrations" not in name}
        assert {name for name in left if not name.endswith(".restore.log")} == set()
    assert not list(a.path("/run").glob("imgproxy-*")), "an images directory is left"
    assert not list((a.directory / "migrations").glob("*.journal")), "a session is left open at the source"
