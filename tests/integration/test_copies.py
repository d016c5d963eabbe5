"""`imgproxy migrate --rounds` where the kernel tracks no changes, as on this machine: copies of a process that writes
all the time, then its dump. It verifies every byte of its memory, here and there."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.criu_death import stand_safely
from tests.nodes import Node, Nodes, Program, assert_runs, migrate, start_cache, start_migrate, summary, until
from tests.programs.selfcheck import kill_and_wait

pytestmark = pytest.mark.t2

SIZE = 24 << 20


def rounds_of(output: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in output.splitlines()]
    return [line for line in lines if line["event"] == "round"]


async def assert_nothing_left(node: Node) -> None:
    """No images directory, no unfinished session, nothing at work."""
    await until(lambda: not any("imgproxy" in command for command in node.processes().values()), "it to end")
    assert not list(node.path("/run").glob("imgproxy-*"))
    assert not list((node.directory / "migrations").glob("*.journal"))


async def test_only_changes_cross_the_link(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a, size=SIZE, procs=2, threads=2)
    cache = await start_cache(b, "--allow-restore", criu=criu)
    done = await migrate(a, check.pid, cache.address, criu, "--rounds", 2, "--compress", "off", "--json", deadline=90)
    assert done.code == 0, done.output
    assert "each round is a copy of the process" in done.stderr
    first, second = rounds_of(done.stdout)
    assert first["bytes"] > 2 * SIZE * 0.9
    assert second["bytes"] < first["bytes"] / 2
    assert second["skipped"] * 4096 > SIZE
    assert first["frozen"] > 0 and second["frozen"] > 0 and second["predicted"] > second["frozen"]
    found = summary(done)
    assert found["foretold"] > 0
    assert found["rounds"][:2] == [first["bytes"], second["bytes"]]
    assert found["rounds"][2] < first["bytes"] / 2
    assert found["image_bytes"] > 3 * 2 * SIZE, "each of them has all of it"
    assert found["wire_bytes"] < found["pages"]["sent"] * 4096 + (4 << 20)
    await assert_runs(check, b)
    await check.finish()
    assert await cache.stop() == 0
    await assert_nothing_left(a)


async def test_a_slow_link_makes_them_pay(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=SIZE)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    options = ("--rounds", "auto", "--limit-rate", "20MB", "--compress", "off", "--json")
    done = await migrate(a, check.pid, cache.address, criu_latest, *options, deadline=90)
    assert done.code == 0, done.output
    rounds = rounds_of(done.stdout)
    assert len(rounds) >= 2
    assert summary(done)["phases"]["dump and send"] < SIZE / 20e6, "one dump would take longer"
    await assert_runs(check, b)
    await check.finish()


async def test_rounds_need_deduplication_here(nodes: Nodes, a: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a)
    done = await migrate(a, check.pid, "127.0.0.1:1", criu_latest, "--rounds", 1, "--no-dedup")
    assert done.code == 2 and "so rounds need deduplication" in done.stderr
    await check.finish()


async def half_way(a: Node, migrating: Program) -> int:
    """A copy is under way, and stays so: imgproxy has been stopped. The pid of its criu."""

    def criu() -> list[int]:
        return [pid for pid, command in a.processes().items() if " dump --stream --leave-running" in command]

    await until(lambda: bool(criu()), "a copy")
    migrating.signal(signal.SIGSTOP)
    return criu()[0]


@pytest.mark.parametrize("victim", ["criu", "proxy", "cache"])
async def test_killed_in_a_copy(nodes: Nodes, a: Node, b: Node, criu_latest: Path, victim: str) -> None:
    check = await nodes.start_memcheck(a, size=SIZE)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    options = ("--rounds", 3, "--limit-rate", "10MB", "--compress", "off", "--reconnect", 2)
    migrating = start_migrate(a, check.pid, cache.address, criu_latest, *options)
    criu = await half_way(a, migrating)
    where = a
    if victim == "criu":
        await stand_safely(a, check)
        kill_and_wait(criu)
        migrating.signal(signal.SIGCONT)
        assert await migrating.wait(90) == 0
        assert "a copy failed: everything is dumped at once" in migrating.stderr
        where = b
    elif victim == "proxy":
        await migrating.kill9()
        await until(lambda: not any("leave-running" in line for line in a.processes().values()), "criu to let it go")
        done = await a.run("imgproxy", "recover", "--journal", a.directory / "migrations", "--patience", 10)
        assert done.code == 0
    else:
        await cache.kill9()
        migrating.signal(signal.SIGCONT)
        assert await migrating.wait(90) == 1
    await assert_runs(check, where)
    await check.finish()
    await until(lambda: not any("imgproxy" in command for command in a.processes().values()), "all to end")
    assert not list((a.directory / "migrations").glob("*.journal")) or victim == "cache"
