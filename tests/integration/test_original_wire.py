"""The original wire with real processes: a dump goes over it to our cache, to a fake original cache, and from a fake
original proxy to ours. What it cannot carry fails the dump, and the process runs on."""

from pathlib import Path

import pytest
import trio

from tests.nodes import Node, Nodes, assert_runs, dump, restore, start_cache, start_proxy
from tests.original_wire import FakeImageCache, FakeImageProxy
from tests.programs.selfcheck import SelfCheck

pytestmark = pytest.mark.t2


async def test_from_proxy_to_cache(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a, size=16 << 20, procs=2, threads=2)
    cache = await start_cache(b, "--wire", "criu")
    restoring = restore(b, criu)
    proxy = await start_proxy(a, cache.address, "--wire", "criu")
    assert await dump(a, criu, check.pid).wait() == 0
    done = await proxy.ended()
    assert (done.code, done.stdout) == (0, "delivered\n"), done.output
    assert await restoring.wait() == 0
    await assert_runs(check, b)
    await cache.wait_log("running")
    states = [line["event"] for line in cache.log if line.get("session")]
    assert states == ["session opened", "complete", "committed", "running"]
    await check.finish()
    await a.empty()
    assert not list(a.directory.glob("journal/*"))


async def test_to_a_cache_that_is_not_ours(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    """Its images, written to files, are what `criu restore` takes; their id is the one that was given."""
    check = await nodes.start_memcheck(a, size=4 << 20)
    async with trio.open_nursery() as nursery:
        cache = FakeImageCache()
        await nursery.start(cache.run)
        proxy = await start_proxy(a, cache.address, "--wire", "criu", "--snapshot", "s3")
        assert await dump(a, criu, check.pid).wait() == 0
        assert (await proxy.ended()).code == 0
        await cache.done.wait()
        nursery.cancel_scope.cancel()
    assert cache.ended, "the stream ended between two images"
    assert {snapshot for snapshot, _ in cache.images} == {"s3"} and cache.order[0] == "parent"
    images = nodes.make_node_dir()
    cache.write_to(images, "s3")
    assert (await b.run(criu, "restore", "-D", images, "-d", "-o", "restore.log")).code == 0
    await assert_runs(check, b)


async def test_the_default_snapshot_is_the_directory(nodes: Nodes, a: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a)
    async with trio.open_nursery() as nursery:
        cache = FakeImageCache()
        await nursery.start(cache.run)
        proxy = await start_proxy(a, cache.address, "--wire", "criu")
        assert await dump(a, criu_latest, check.pid, "--leave-running").wait() == 0
        assert (await proxy.ended()).code == 0
        await cache.done.wait()
        nursery.cancel_scope.cancel()
    assert {snapshot for snapshot, _ in cache.images} == {str(a.directory)}
    await assert_runs(check, a)


async def test_from_a_proxy_that_is_not_ours(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20)
    images = await _dumped(a, criu, check, nodes.make_node_dir())
    cache = await start_cache(b, "--wire", "criu")
    other, proxy = [await FakeImageProxy.connect(cache.address) for _ in range(2)]
    await proxy.send_directory(images, "s1")
    restoring = restore(b, criu)
    await proxy.finish()
    assert await restoring.wait() == 0
    await assert_runs(check, b)
    await proxy.close()
    await other.close()


async def test_send_puts_a_finished_dump_there(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a)
    images = await _dumped(a, criu_latest, check, nodes.make_node_dir())
    cache = await start_cache(b, "--wire", "criu")
    sent = await a.run("imgproxy", "send", images, "--wire", "criu", "--to", cache.address, "--snapshot", "s1")
    assert sent.code == 0, sent.output
    assert await restore(b, criu_latest).wait() == 0
    await assert_runs(check, b)


async def test_a_cut_leaves_the_process_where_it_is(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """The cache dies before it has an image: the dump fails at its first."""
    check = await nodes.start_memcheck(a, size=32 << 20)
    cache = await start_cache(b, "--wire", "criu")
    proxy = await start_proxy(a, cache.address, "--wire", "criu")
    await cache.kill9()
    assert await dump(a, criu_latest, check.pid).wait() != 0
    done = await proxy.ended()
    assert done.code == 1
    assert "the original image-cache is gone" in done.output
    await assert_runs(check, a)


async def test_a_dump_that_fails_is_not_committed_there(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """Its last image has gone out when the action script of another fails it: the end of the stream has not."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--wire", "criu")
    proxy = await start_proxy(a, cache.address, "--wire", "criu")
    refusing = nodes.make_node_dir() / "refuse"
    hook = a.directory / "imgproxy-hook"
    refusing.write_text(f'#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] && exit 1\nexec {hook} "$@"\n')
    refusing.chmod(0o700)
    assert await dump(a, criu_latest, check.pid, "--action-script", refusing, hook=False).wait() != 0
    assert (await proxy.ended()).code == 1
    await cache.wait_log("aborted")
    await assert_runs(check, a)


async def test_an_empty_image_is_refused_before_the_process_is_lost(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path
) -> None:
    check = await nodes.start_memcheck(a)
    images = await _dumped(a, criu_latest, check, nodes.make_node_dir())
    (images / "pages-9.img").touch()
    cache = await start_cache(b, "--wire", "criu")
    sent = await a.run("imgproxy", "send", images, "--wire", "criu", "--to", cache.address, "--snapshot", "s1")
    assert sent.code == 1
    assert "pages-9.img of s1, which is empty: the wire of the original image-cache cannot carry it" in sent.stderr
    await cache.wait_log("aborted")


REFUSALS = {
    "tls": (
        ["--tls-cacert", "x"],
        "--tls-cacert: an original image-cache (--wire criu) does not know it; leave it out",
    ),
    "rate": (["--limit-rate", "1MB"], "--limit-rate: an original image-cache"),
    "zstd": (["--compress", "3"], "--compress: an original image-cache"),
    "unix": (["--to", "unix:/run/x"], "is reached by TCP only; write HOST:PORT"),
    "clear": (["--to", "192.0.2.1:7000"], "would go there in the clear"),
    "wire": (["--wire", "other"], "Invalid value for '--wire'"),
    "link": (["--wire", "link"], "--snapshot: only an original image-cache wants it"),
}


@pytest.mark.parametrize(("words", "line"), REFUSALS.values(), ids=REFUSALS)
async def test_what_was_asked_wrongly(a: Node, words: list[str], line: str) -> None:
    given = ["--to", "127.0.0.1:9", "--wire", "criu", "--snapshot", "s1", *words]
    for command in (["imgproxy", "-D", str(a.directory)], ["imgproxy", "send", str(a.directory)]):
        ended = await a.run(*command, *given)
        assert ended.code == 2
        assert line in ended.stderr


async def test_a_cache_for_original_proxies_has_no_tls(a: Node) -> None:
    listening = ["--wire", "criu", "--listen", "127.0.0.1:0", "--tls-cert", "x"]
    ended = await a.run("imgcache", "-D", a.directory, *listening)
    assert (ended.code, ended.stderr) == (
        2,
        "imgcache: --wire criu: an original image-proxy knows no TLS; leave the --tls options out\n",
    )


async def _dumped(node: Node, criu: Path, check: SelfCheck, images: Path) -> Path:
    """The process, dumped into files."""
    assert (await node.run(criu, "dump", "-D", images, "-t", check.pid, "-o", "dump.log")).code == 0
    return images
