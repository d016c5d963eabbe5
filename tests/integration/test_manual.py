"""The flow with four commands: cache, criu restore, proxy, criu dump, in the orders in which people start them."""

from pathlib import Path

import pytest

from tests.nodes import Node, Nodes, assert_runs, dump, restore, start_cache, start_proxy, until

pytestmark = pytest.mark.t2


async def test_restore_first(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20, procs=2, threads=2)
    cache = await start_cache(b)
    restoring = restore(b, criu)
    proxy = await start_proxy(a, cache.address)
    dumping = dump(a, criu, check.pid)
    assert await dumping.wait() == 0
    assert await restoring.wait() == 0
    done = await proxy.ended()
    assert done.code == 0, done.output
    assert done.stdout.startswith("committed\nfrozen "), "it waited to hear that the process runs"
    states = [line["event"] for line in cache.log if line.get("session")]
    assert states == ["session opened", "complete", "restored", "committed", "running"]
    await assert_runs(check, b)
    await check.finish()
    await a.empty()
    assert await cache.stop() == 0
    await b.empty()
    _assert_tidy(a, b)


async def test_restore_later(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_proxy(a, cache.address)
    assert await dump(a, criu, check.pid).wait() == 0
    done = await proxy.ended()
    assert done.code == 0, done.output
    assert not check.pids(), "parked at the cache"
    assert await restore(b, criu).wait() == 0
    await assert_runs(check, b)
    await cache.wait_log("running")
    await cache.stop()
    _assert_tidy(a, b)


async def test_without_the_destinations_hook(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    """Then nothing holds the restored process back, so it gets its images after the commit only."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    restoring = restore(b, criu, hook=False)
    proxy = await start_proxy(a, cache.address)
    assert await dump(a, criu, check.pid).wait() == 0
    assert await restoring.wait() == 0
    assert (await proxy.ended()).code == 0
    await assert_runs(check, b)
    await cache.wait_log("running")


async def test_wait_restored_needs_the_destinations_hook(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    restoring = restore(b, criu, hook=False)
    proxy = await start_proxy(a, cache.address, "--wait-restored")
    assert await dump(a, criu, check.pid).wait() != 0
    done = await proxy.ended()
    assert done.code == 1
    assert "runs without --action-script imgcache-hook" in done.output
    assert await restoring.wait() != 0
    await assert_runs(check, a)


async def test_wait_restored(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    """Also when the restore is started while the process is frozen already."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_proxy(a, cache.address, "--wait-restored", "--session", "mine")
    dumping = dump(a, criu, check.pid)
    await cache.wait_log("complete", session="mine")
    assert not dumping.dead, "it waits"
    assert await restore(b, criu).wait() == 0
    assert await dumping.wait() == 0
    assert (await proxy.ended()).code == 0
    await assert_runs(check, b)


async def test_no_wait_restored(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    """With a restore waiting there, the process is given up as soon as all images have arrived."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    restoring = restore(b, criu)
    proxy = await start_proxy(a, cache.address, "--no-wait-restored")
    assert await dump(a, criu, check.pid).wait() == 0
    assert (await proxy.ended()).code == 0
    assert await restoring.wait() == 0
    await assert_runs(check, b)


async def test_wait_restored_gives_up_when_nobody_restores(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_proxy(a, cache.address, "--wait-restored", "--timeout", 1)
    assert await dump(a, criu_latest, check.pid).wait() != 0
    done = await proxy.ended()
    assert done.code == 1
    assert "did not restore the process within 1 s (--timeout)" in done.stdout
    await cache.wait_log("aborted", reason="the destination did not restore the process within 1 s (--timeout)")
    await assert_runs(check, a)


async def test_a_failed_restore_can_be_repeated(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    """The program is missing at the destination: the process stays frozen until the second restore has it."""
    program = nodes.make_node_dir() / "program"
    program.write_bytes(nodes.programs.memcheck.read_bytes())
    program.chmod(0o700)
    check = await nodes.start_memcheck(a, program=program)
    cache = await start_cache(b)
    restoring = restore(b, criu)
    proxy = await start_proxy(a, cache.address, "--wait-restored")
    away = program.rename(program.with_name("away"))
    away.rename(program)
    hidden = b.path(program.parent)
    assert (await b.run("mount", "-t", "tmpfs", "tmpfs", program.parent)).code == 0
    await until(lambda: not (hidden / "program").exists(), "the program to be missing in that node only")
    dumping = dump(a, criu, check.pid)
    assert await restoring.wait() != 0
    failed = await cache.wait_log("the restore failed; the images are kept")
    assert "its log has the reason" in failed["reason"]
    assert str(program)[1:] in (b.directory / "restore.log").read_text()
    assert not dumping.dead
    assert not proxy.dead
    assert (await b.run("umount", program.parent)).code == 0
    assert await restore(b, criu, log="again.log").wait() == 0
    assert await dumping.wait() == 0
    assert (await proxy.ended()).code == 0
    await assert_runs(check, b)


def _assert_tidy(a: Node, b: Node) -> None:
    """Logs and statistics are CRIU's, and the cache remembers what runs, in its journal."""
    assert {name for name in a.files() if not name.startswith("journal")} == {"dump.log", "stats-dump"}
    assert {name for name in b.files() if not name.startswith("journal")} == {"restore.log", "stats-restore"}
    assert not list(a.directory.glob("journal/*"))
