"""Many sessions at one cache, and what an operator does with them."""

import json
from pathlib import Path

import pytest
import trio

from tests.nodes import Ended, Node, Nodes, assert_runs, dump, migrate, restore, start_cache, start_proxy, until

pytestmark = pytest.mark.t2


async def test_many_at_once_and_one_that_fails(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    checks = [await nodes.start_memcheck(a, size=1 << 20) for _ in range(4)]
    lock = nodes.make_node_dir() / "lock"
    failing = await nodes.start_quiet(a, "flock", "--no-fork", lock, "sleep", "1000")
    await until(lambda: "sleep 1000 " in a.processes().values(), "the lock to be taken")
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    ended: dict[int, Ended] = {}

    async def go(pid: int) -> None:
        ended[pid] = await migrate(a, pid, cache.address, criu_latest, "--session", f"of-{pid}", deadline=90)

    async with trio.open_nursery() as nursery:
        for pid in [failing, *(check.pid for check in checks)]:
            nursery.start_soon(go, pid)
    assert ended.pop(failing).code == 1
    assert {done.code for done in ended.values()} == {0}, ended
    for check in checks:
        await assert_runs(check, b)
    status = (await b.run("imgcache", "status", "-D", b.directory, "--json")).stdout
    states = {session["name"]: session["state"] for session in map(json.loads, status.splitlines())}
    assert states == {f"of-{failing}": "aborted", **{f"of-{check.pid}": "running" for check in checks}}
    assert await cache.stop() == 0


async def test_named_sessions_go_to_their_own_restores(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """Three proxies in directories of their own; the restores are started in another order."""
    checks = [await nodes.start_memcheck(a) for _ in range(3)]
    cache = await start_cache(b)
    directories = [nodes.make_node_dir() for _ in checks]
    names = ["one", "two", "three"]
    proxies = []
    for name, directory in zip(names, directories, strict=True):
        proxies.append(await start_proxy(a, cache.address, "--session", name, "--wait-restored", directory=directory))
    restores = [restore(b, criu_latest, directory=b.directory / name) for name in reversed(names)]
    for check, directory in zip(checks, directories, strict=True):
        script = ["--action-script", directory / "imgproxy-hook"]
        assert (await a.run(criu_latest, "dump", "--stream", "-D", directory, "-t", check.pid, *script)).code == 0
    assert [await proxy.wait() for proxy in proxies] == [0, 0, 0]
    assert [await one.wait() for one in restores] == [0, 0, 0]
    for check in checks:
        await assert_runs(check, b)


async def test_a_name_is_taken_once(nodes: Nodes, a: Node, b: Node) -> None:
    cache = await start_cache(b)
    first = await start_proxy(a, cache.address, "--session", "mine")
    second = await a.run("imgproxy", "--to", cache.address, "-D", nodes.make_node_dir(), "--session", "mine")
    assert second.code == 1
    assert second.stderr == ("imgproxy: a session named mine is under way there; choose another name with --session\n")
    third = await a.run("imgproxy", "--to", cache.address, "-D", a.directory, "--session", "other")
    assert third.code == 2
    assert third.stderr.endswith("another program listens there; stop it or use another directory\n")
    assert not first.dead


async def test_status_extract_and_drop(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """Images that go through the cache are those that criu writes."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    assert (await b.run("imgcache", "status", "-D", b.directory)).stdout == "no sessions\n"
    images = nodes.make_node_dir()
    assert (await a.run(criu_latest, "dump", "-D", images, "-t", check.pid, "--leave-running")).code == 0
    sent = await a.run("imgproxy", "send", images, "--to", cache.address, "--session", "sent")
    assert sent.code == 0, sent.output
    assert "images are at the cache, in session sent" in sent.stdout
    table = (await b.run("imgcache", "status", "-D", b.directory)).stdout
    assert "sent" in table
    assert "committed" in table
    told = json.loads((await b.run("imgcache", "status", "-D", b.directory, "--json")).stdout)
    names = {path.name for path in images.iterdir() if path.suffix == ".img"}
    assert (told["name"], told["state"], told["images"]) == ("sent", "committed", len(names))
    target = nodes.make_node_dir() / "out"
    extracted = await b.run("imgcache", "extract", "sent", target, "-D", b.directory)
    assert extracted.code == 0, extracted.output
    assert {path.name for path in target.iterdir()} == names
    assert all((target / name).read_bytes() == (images / name).read_bytes() for name in names)
    again = await b.run("imgcache", "extract", "sent", target, "-D", b.directory)
    assert again.code == 2
    assert "is not an empty directory" in again.stderr
    refused = await b.run("imgcache", "drop", "sent", "-D", b.directory)
    assert refused.code == 2
    assert "drop it with --force" in refused.stderr
    assert (await b.run("imgcache", "drop", "sent", "--force", "-D", b.directory)).code == 0
    assert "aborted" in (await b.run("imgcache", "status", "-D", b.directory)).stdout
    unknown = await b.run("imgcache", "drop", "sent2", "-D", b.directory)
    assert (unknown.code, "no session 'sent2' here" in unknown.stderr) == (2, True)
    await cache.stop()
    gone = await b.run("imgcache", "status", "-D", b.directory)
    assert (gone.code, gone.stderr) == (2, f"imgcache: no imgcache runs in {b.directory}\n")


async def test_sent_images_are_restored(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a)
    images = nodes.make_node_dir()
    assert (await a.run(criu, "dump", "-D", images, "-t", check.pid)).code == 0
    cache = await start_cache(b)
    restoring = restore(b, criu)
    assert (await a.run("imgproxy", "send", images, "--to", cache.address)).code == 0
    assert await restoring.wait() == 0
    await assert_runs(check, b)


async def test_a_parked_checkpoint_is_restored_twice(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20)
    archive = nodes.make_node_dir() / "parked"
    proxy = await start_proxy(a, f"file:{archive}")
    assert await dump(a, criu, check.pid).wait() == 0
    done = await proxy.ended()
    assert (done.code, done.stdout) == (0, "parked\n")
    await a.empty()
    assert archive.stat().st_mode & 0o777 == 0o600
    cache = await start_cache(b, "--from", f"file:{archive}", listen=None)
    assert await restore(b, criu).wait() == 0
    await assert_runs(check, b)
    (pid,) = check.pids()
    assert (await b.run("kill", "-9", check.pid)).code == 0
    await until(lambda: not Path(f"/proc/{pid}").exists(), "the first to be gone")
    assert await restore(b, criu, log="again.log").wait() == 0
    await check.wait_progress()
    await check.verify_memory()
    assert await cache.stop() == 0


async def test_damaged_archives(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a)
    images, archive = nodes.make_node_dir(), nodes.make_node_dir() / "whole"
    assert (await a.run(criu_latest, "dump", "-D", images, "-t", check.pid, "--leave-running")).code == 0
    assert (await a.run("imgproxy", "send", images, "--to", f"file:{archive}")).code == 0
    whole = archive.read_bytes()

    async def refused(name: str, content: bytes) -> str:
        damaged = archive.with_name(name)
        damaged.write_bytes(content)
        ended = await b.run("imgcache", "-D", b.directory, "--from", f"file:{damaged}")
        assert ended.code == 2
        line = ended.stderr.splitlines()[-1]
        assert line.startswith(f"imgcache: archive {damaged}: ")
        assert not any(path.is_socket() for path in b.directory.rglob("*"))
        return line

    half = len(whole) // 2
    assert "cut inside image" in await refused("cut", whole[:half])
    assert f"damaged or cut at byte {len(whole) - 100}" in await refused("end", whole[:-100])
    assert "damaged or cut at byte" in await refused("start", b"\0" * 100 + whole[100:])
    assert "damaged or cut at byte 0" in await refused("empty", b"")
    missing = await b.run("imgcache", "-D", b.directory, "--from", f"file:{archive}.nowhere")
    assert (missing.code, "No such file or directory" in missing.stderr) == (2, True)
