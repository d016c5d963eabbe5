"""`imgproxy migrate --rounds`: what goes wrong in a pre-dump never harms the process; the migration goes on or ends.

This machine's kernel does not track changes of memory, so the pre-dumps are those of a fake CRIU, whose pages nobody
needs: the dump, done by the real one through our page server, has everything. Real pre-dumps: tests/testbed. What is
done here without a fake: test_copies.py.
"""

import json
from pathlib import Path

import pytest
import trio

from imgproxy.near_live import PATIENCE
from tests.fake_rounds import planned, runs, told, value
from tests.nodes import Node, Nodes, assert_runs, migrate, start_cache, start_migrate, summary, until

pytestmark = pytest.mark.t2


def rounds_of(output: str) -> list[int]:
    """Bytes of each pre-dump, as told with --json."""
    lines = [json.loads(line) for line in output.splitlines()]
    return [line["bytes"] for line in lines if line["event"] == "round"]


async def assert_nothing_left(node: Node) -> None:
    """No images directory, no unfinished session, nothing at work."""
    await until(lambda: not any("imgproxy" in command for command in node.processes().values()), "it to end")
    assert not list(node.path("/run").glob("imgproxy-*"))
    assert not list((node.directory / "migrations").glob("*.journal"))


@pytest.mark.parametrize("rounds", [1, 3])
async def test_a_number_of_rounds(nodes: Nodes, a: Node, b: Node, criu: Path, node_dir: Path, rounds: int) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20, procs=2, threads=2)
    cache = await start_cache(b, "--allow-restore", criu=criu)
    command = planned(node_dir, criu, "good")
    done = await migrate(a, check.pid, cache.address, command, "--rounds", rounds, "--json")
    assert done.code == 0, done.output
    assert len(rounds_of(done.stdout)) == rounds
    assert summary(done)["rounds"][:-1] == rounds_of(done.stdout)
    assert summary(done)["rounds"][-1] > 2 * (4 << 20)
    parents = [value(words, "--prev-images-dir") for words in runs(node_dir, "pre-dump", "dump")]
    assert parents == [None, *(f"../{number}" for number in range(1, rounds + 1))]
    await assert_runs(check, b)
    await check.finish()
    assert await cache.stop() == 0
    await assert_nothing_left(a)


@pytest.mark.parametrize("how", ["fails", "silent", "dies"])
async def test_a_pre_dump_that_fails(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path, how: str
) -> None:
    """Its round is dropped, though it may have closed it well; everything is dumped, as if there had been none."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    command = planned(node_dir, criu_latest, "good", how)
    done = await migrate(a, check.pid, cache.address, command, "--rounds", 5, "--json")
    assert done.code == 0, done.output
    assert "a pre-dump failed: everything is dumped at once" in done.stderr
    *_, pre_dump, dump = runs(node_dir, "pre-dump", "dump")
    assert value(pre_dump, "--prev-images-dir") == "../1"
    assert dump[0] == "dump" and value(dump, "--prev-images-dir") is None
    assert len(runs(node_dir, "pre-dump")) == 2, "nothing more is tried"
    assert len(summary(done)["rounds"]) == 2, "what failed does not count"
    await assert_runs(check, b)
    await check.finish()
    await assert_nothing_left(a)


async def test_the_cache_gives_up(nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    command = planned(node_dir, criu_latest, "good", "holds")
    migrating = start_migrate(a, check.pid, cache.address, command, "--rounds", 3)
    await until(lambda: told(node_dir, "half-way"), "the second pre-dump")
    began = trio.current_time()
    assert await cache.stop() == 0
    done = await migrating.ended()
    assert done.code == 1
    assert "the cache at the destination is stopping" in done.output
    assert trio.current_time() - began < PATIENCE, "criu is let go at once, for it may hold the process"
    await until(lambda: told(node_dir, "let-go"), "criu to be let go")
    assert runs(node_dir, "dump") == []
    await assert_runs(check, a)
    await check.finish()
    await assert_nothing_left(a)


async def test_stopped_in_a_pre_dump(nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    command = planned(node_dir, criu_latest, "good", "holds")
    migrating = start_migrate(a, check.pid, cache.address, command, "--rounds", 3)
    await until(lambda: told(node_dir, "half-way"), "the second pre-dump")
    began = trio.current_time()
    assert await migrating.stop() == 128 + 15
    assert trio.current_time() - began < PATIENCE
    assert told(node_dir, "let-go")
    assert "stopped; the process runs on here" in migrating.stderr
    await cache.wait_log("aborted")
    await assert_runs(check, a)
    await check.finish()
    await assert_nothing_left(a)


async def test_killed_in_a_pre_dump(nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    command = planned(node_dir, criu_latest, "good", "holds")
    migrating = start_migrate(a, check.pid, cache.address, command, "--rounds", 3, "--session", "mine")
    await until(lambda: told(node_dir, "half-way"), "the second pre-dump")
    await migrating.kill9()
    await until(lambda: told(node_dir, "let-go"), "criu to be let go")
    done = await a.run("imgproxy", "recover", "--journal", a.directory / "migrations", "--patience", 10)
    assert (done.code, done.stdout) == (0, "mine: the process stays here; the cache knows (aborted)\n")
    await cache.wait_log("aborted")
    await until(
        lambda: not any("restore --stream" in command for command in b.processes().values()), "its restore to end"
    )
    await assert_runs(check, a)
    await check.finish()
    assert await cache.stop() == 0
    await assert_nothing_left(a)


async def test_no_criu_here(nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    missing = node_dir / "criu"
    done = await migrate(a, check.pid, cache.address, missing, "--rounds", "auto")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == f"imgproxy: CRIU {missing}: no such program: install CRIU, or name it with --criu\n"
    await check.finish()


async def test_a_dump_that_fails_after_its_rounds(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path
) -> None:
    """This one has a lock, and CRIU is not told that it may."""
    pid = await nodes.start_quiet(a, "flock", "--no-fork", node_dir / "lock", "sleep", "1000")
    await until(lambda: "sleep 1000 " in a.processes().values(), "the lock to be taken")
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    done = await migrate(a, pid, cache.address, planned(node_dir, criu_latest, "good"), "--rounds", 2)
    assert done.code == 1, done.output
    first = done.stdout.splitlines()[0]
    assert first.startswith("aborted: criu dump failed: ") and "lock" in first
    assert len(runs(node_dir, "pre-dump")) == 2
    assert "sleep 1000 " in a.processes().values()
    assert (await a.run("flock", "--nonblock", node_dir / "lock", "true")).code == 1, "it is locked"
    await assert_nothing_left(a)


async def test_a_recovery_leaves_a_migration_alone(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path
) -> None:
    """One that pre-dumps is at work."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    command = planned(node_dir, criu_latest, "good", "holds")
    migrating = start_migrate(a, check.pid, cache.address, command, "--rounds", 3)
    await until(lambda: told(node_dir, "half-way"), "the second pre-dump")
    done = await a.run("imgproxy", "recover", "--journal", a.directory / "migrations", "--patience", 1)
    assert (done.code, done.stdout) == (0, "")
    assert await migrating.stop() == 128 + 15
    await check.finish()


@pytest.mark.parametrize("rounds", [[], ["--rounds", 2]])
async def test_a_target_that_nothing_ends_by(nodes: Nodes, a: Node, criu_latest: Path, rounds: list[object]) -> None:
    check = await nodes.start_memcheck(a)
    done = await migrate(a, check.pid, "127.0.0.1:9", criu_latest, *rounds, "--downtime-target", 1)
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == (
        "imgproxy: --downtime-target: only --rounds auto ends by it; write that, too, or leave it out\n"
    )
    await check.finish()


async def test_a_criu_that_cannot_look(nodes: Nodes, a: Node, node_dir: Path) -> None:
    """That is another reason than a kernel that does not track."""
    check = await nodes.start_memcheck(a)
    command = node_dir / "criu"
    command.write_text("#!/bin/sh\necho 'Error (criu/kerndat.c:1): no /proc' >&2\nexit 1\n")
    command.chmod(0o700)
    done = await migrate(a, check.pid, "127.0.0.1:9", command, "--rounds", "auto")
    assert (done.code, done.stdout) == (2, "")
    assert done.stderr == f"imgproxy: {command} check --feature mem_dirty_track: no /proc\n"
    await check.finish()
