"""Kill -9 of each component of a migration by `criu --remote` with both action scripts: one node runs the process.

The moment is drawn from the seed. Afterwards a person does what is documented: starts the cache again, a restore again
where one has died, and `imgproxy recover` where the proxy has, or could not reach its cache.
"""

import random
import signal
import socket
from pathlib import Path

import pytest
import trio

from tests.integration.criu_death import stand_safely
from tests.integration.old_criu import Shim
from tests.nodes import Node, Nodes, Program, assert_runs, start_cache, start_proxy, until
from tests.programs.selfcheck import SelfCheck, kill_and_wait

pytestmark = pytest.mark.t3

#: What is killed, and in which node it runs: words of its command line, before and after it has become CRIU.
VICTIMS = {
    "proxy": ("a", ["bin/imgproxy"]),
    "cache": ("b", ["bin/imgcache"]),
    "dump": ("a", ["tests.remote_shim dump"]),
    "restore": ("b", ["tests.remote_shim restore", "restore --stream"]),
}
#: What a killed CRIU leaves of itself (`imgnode/criu_orphans.py`): of the shim's nobody but the test knows.
COPIES = ["criu dump --stream", "criu restore --stream"]
#: Runs for each victim, at once.
RUNS = 2
#: When to kill: after what the cache has logged (None: after the start), plus a random part of so many seconds.
MOMENTS = [(None, 1.0), ("session opened", 1.0), ("complete", 0.2), ("restored", 0.08), ("committed", 0.08)]
#: Seconds within which all is settled, a lost peer's timeouts included.
SETTLED = 60.0


def _free_port() -> int:
    """A port that is free now: the cache is started again on the same."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
        return free


@pytest.mark.parametrize("victim", VICTIMS)
async def test_one_copy_whatever_dies(nodes: Nodes, criu_latest: Path, victim: str) -> None:
    async def one(seed: int) -> None:
        migration = Migration(nodes, await nodes.make(), await nodes.make(), criu_latest, f"{victim} {seed}")
        try:
            await migration.run(victim)
        except AssertionError as error:
            seen = "\n".join([*migration.a.told(), *migration.b.told()])
            raise AssertionError(f"seed {seed}: {error}\n{seen}") from error

    async with trio.open_nursery() as nursery:
        for seed in range(RUNS):
            nursery.start_soon(one, seed)


class Migration:
    """One process, and what moves it."""

    def __init__(self, nodes: Nodes, a: Node, b: Node, criu: Path, seed: str) -> None:
        self._nodes, self.a, self.b = nodes, a, b
        self._draw = random.Random(seed)
        variant = self._draw.choice(["pipe", "nopipe"])
        self._here, self._there = Shim(nodes, a, criu, variant), Shim(nodes, b, criu, variant)
        self._port = _free_port()

    async def run(self, victim: str) -> None:
        a, b = self.a, self.b
        check = await self._nodes.start_memcheck(a, size=4 << 20, procs=self._draw.choice([1, 3]))
        cache = await self._cache()
        restoring = self._restore()
        proxy = await start_proxy(a, cache.address, "--remote", "--timeout", 8, "--reconnect", 2)
        dumping = self._here.start("dump", "-t", check.pid, hook="imgproxy-hook")
        await self._moment(cache, dumping)
        where, words = VICTIMS[victim]
        if victim == "dump":
            await stand_safely(a, check)
        _kill(a if where == "a" else b, words)
        if victim == "cache":
            await cache.wait()
            cache = await self._cache()
        if victim in ("cache", "restore"):
            await restoring.wait(SETTLED)
            restoring = self._restore()
        await dumping.wait(SETTLED)
        if victim == "dump":
            proxy.signal(signal.SIGTERM)  # it may have seen none, and wait for one
        await proxy.wait(SETTLED)
        done = await a.run("imgproxy", "recover", "-D", a.directory, "--patience", 10, deadline=SETTLED)
        assert done.code == 0, done.output
        await self._settle(check, restoring)
        await assert_runs(check, a if _in(a, check) else b)
        await check.finish()
        await restoring.kill9()
        assert await cache.stop() == 0
        for node in (a, b):
            _kill(node, COPIES)
        await until(lambda: not a.processes() and not b.processes(), "everything to be gone")
        assert not list((a.directory / "journal").glob("*.journal")), "a session is left open at the source"

    async def _cache(self) -> Program:
        return await start_cache(self.b, "--remote", "--source-timeout", 2, listen=f"127.0.0.1:{self._port}")

    def _restore(self) -> Program:
        return self._there.start("restore", hook="imgcache-hook")

    async def _moment(self, cache: Program, dumping: Program) -> None:
        """Wait for the moment; a dump that is over before has passed it."""
        event, spread = self._draw.choice(MOMENTS)
        if event is not None:
            async with trio.open_nursery() as nursery:

                async def over() -> None:
                    await dumping.wait()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(over)
                await cache.wait_log(event)
                nursery.cancel_scope.cancel()
        with trio.move_on_after(self._draw.uniform(0, spread)):
            await dumping.wait()

    async def _settle(self, check: SelfCheck, restoring: Program) -> None:
        """Wait until the tree is in one node only. If it is nowhere, its images wait for a restore."""
        a, b = self.a, self.b
        working = ("dump --stream", "imgproxy.hook", "imgproxy recover")
        await until(lambda: not [one for one in a.processes().values() if any(map(one.count, working))], "dumps to end")
        if not _in(a, check) and not _in(b, check) and restoring.dead:
            assert await self._restore().wait() == 0
        await until(lambda: bool(_in(a, check)) != bool(_in(b, check)), "the tree to be in one node", SETTLED)


def _kill(node: Node, words: list[str]) -> None:
    for pid, command in node.processes().items():
        if any(word in command for word in words):
            kill_and_wait(pid)


def _in(node: Node, check: SelfCheck) -> list[int]:
    """The tree's processes in a node."""
    return [pid for pid in check.pids() if pid in node.processes()]
