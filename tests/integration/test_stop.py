"""SIGTERM: everything ends in order, whatever is under way."""

import signal
from pathlib import Path

import pytest

from tests.nodes import Node, Nodes, assert_runs, dump, restore, start_cache, start_migrate, start_proxy, until

pytestmark = pytest.mark.t2

SLOW = ["--limit-rate", "2MB", "--compress", "off"]


async def test_idle(b: Node, node_dir: Path) -> None:
    cache = await start_cache(b, "--listen", f"unix:{node_dir}/link")
    assert b.files() == {"imgcache.sock", "imgcache-hook", "streamer-serve.sock", "journal"}
    assert await cache.stop() == 0
    assert b.files() == {"journal"}
    assert not list(node_dir.iterdir())
    await b.empty()


async def test_a_proxy_that_waits_for_a_dump(a: Node, b: Node) -> None:
    cache = await start_cache(b)
    proxy = await start_proxy(a, cache.address)
    assert a.files() >= {"imgproxy.sock", "imgproxy-hook", "streamer-capture.sock"}
    assert await proxy.stop() == 128 + 15
    await cache.wait_log("aborted")
    assert a.files() == {"journal"}
    await until(
        lambda: b.files() == {"imgcache.sock", "imgcache-hook", "streamer-serve.sock", "journal"}, "only its own"
    )


async def test_the_cache_while_it_receives(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=16 << 20)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    migrating = start_migrate(a, check.pid, cache.address, criu_latest, *SLOW)
    await migrating.wait_stderr("dumping")
    assert await cache.stop() == 0
    done = await migrating.ended()
    assert done.code == 1
    assert done.stdout.startswith("aborted: the cache at the destination is stopping\n")
    await assert_runs(check, a)
    await until(lambda: not b.processes(), "its restore to end")
    assert {name for name in b.files() if not name.endswith(".restore.log")} == {"journal"}


async def test_the_proxy_while_it_sends(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=16 << 20)
    cache = await start_cache(b)
    restoring = restore(b, criu_latest)
    proxy = await start_proxy(a, cache.address, *SLOW)
    dumping = dump(a, criu_latest, check.pid)
    await until((a.directory / "dump.log").exists, "the dump to begin")
    assert await proxy.stop() == 128 + 15
    assert await dumping.wait() != 0
    assert await restoring.wait() != 0
    await assert_runs(check, a)
    await cache.wait_log("aborted")
    assert not any(path.is_socket() for path in a.directory.rglob("*"))
    assert not list((a.directory / "journal").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_migrate_while_it_sends(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, number: signal.Signals
) -> None:
    check = await nodes.start_memcheck(a, size=16 << 20)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    migrating = start_migrate(a, check.pid, cache.address, criu_latest, *SLOW)
    await migrating.wait_stderr("dumping")
    migrating.signal(number)
    assert await migrating.wait() == 128 + number
    assert "stopped; the process runs on here" in migrating.stderr
    await assert_runs(check, a)
    await cache.wait_log("aborted")
    await until(lambda: len(b.processes()) == 1, "the restore to end")
    await until(lambda: len(a.processes()) == 2, "criu dump to end; memcheck and its reaper stay")
    assert {path.name for path in a.path("/run").iterdir()} <= {"criu.kdat"}
    assert not list((a.directory / "migrations").glob("*.journal"))
