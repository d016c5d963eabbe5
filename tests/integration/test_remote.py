"""The original `criu --remote`, both variants: real processes between real nodes, through imgproxy and imgcache.

The client is a program of the tests that speaks the original's bytes for a CRIU of today (`tests/remote_shim.py`).
"""

import signal
import sys
from pathlib import Path

import pytest

from tests.integration.image_memory import held
from tests.integration.old_criu import ROOT, Shim
from tests.nodes import Node, Nodes, Program, assert_runs, dump, restore, start_cache, start_proxy, until
from tests.programs.selfcheck import SelfCheck

pytestmark = pytest.mark.t2

VARIANTS = pytest.mark.parametrize("variant", ["pipe", "nopipe"])


def states(cache: Program) -> list[str]:
    return [line["event"] for line in cache.log if line.get("session")]


@VARIANTS
async def test_hooks_on_both_sides(nodes: Nodes, a: Node, b: Node, criu: Path, variant: str) -> None:
    """The restore waits from the beginning; the process goes on only when the source has given it up."""
    check = await nodes.start_memcheck(a, size=4 << 20, procs=2, threads=2)
    cache = await start_cache(b, "--remote")
    restoring = Shim(nodes, b, criu, variant).start("restore", hook="imgcache-hook")
    proxy = await start_proxy(a, cache.address, "--remote")
    dumping = Shim(nodes, a, criu, variant).start("dump", "-t", check.pid, hook="imgproxy-hook")
    assert await dumping.wait() == 0, dumping.stderr
    assert await restoring.wait() == 0, restoring.stderr
    done = await proxy.ended()
    assert done.code == 0, done.output
    assert states(cache) == ["session opened", "complete", "restored", "committed", "running"]
    await assert_runs(check, b)
    await check.finish()
    assert await cache.stop() == 0


@VARIANTS
async def test_without_any_hook(nodes: Nodes, a: Node, b: Node, criu_latest: Path, variant: str) -> None:
    """As on the mailing list. Nothing holds the restored process back, so it gets its images after the commit."""
    check = await nodes.start_memcheck(a, procs=2)
    cache = await start_cache(b, "--remote")
    proxy = await start_proxy(a, cache.address, "--remote")
    restoring = Shim(nodes, b, criu_latest, variant).start("restore")
    dumping = Shim(nodes, a, criu_latest, variant).start("dump", "-t", check.pid)
    assert await dumping.wait() == 0, dumping.stderr
    assert await restoring.wait() == 0, restoring.stderr
    assert (await proxy.ended()).code == 0
    await cache.wait_log("running")
    assert states(cache) == ["session opened", "complete", "committed", "running"]
    await assert_runs(check, b)


@pytest.mark.parametrize("dedup", [(), ("--dedup",)], ids=["plain", "dedup"])
async def test_the_restore_can_come_later(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, dedup: tuple[str, ...]
) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--remote")
    proxy = await start_proxy(a, cache.address, "--remote", *dedup)
    assert await Shim(nodes, a, criu_latest).start("dump", "-t", check.pid, hook="imgproxy-hook").wait() == 0
    done = await proxy.ended()
    assert done.code == 0, done.output
    assert ("were there already" in done.stdout) == bool(dedup)
    assert not check.pids(), "parked at the cache"
    restoring = Shim(nodes, b, criu_latest).start("restore", hook="imgcache-hook")
    assert await restoring.wait() == 0, restoring.stderr
    await cache.wait_log("running")
    await assert_runs(check, b)


# ---- what fails stays where it is ----


async def test_a_dump_whose_own_script_fails_is_not_handed_over(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path
) -> None:
    """CRIU lets the tasks go on, and says its end all the same."""
    check = await nodes.start_memcheck(a)
    (a.directory / "mine").write_text('#!/bin/sh\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ]\n')
    (a.directory / "mine").chmod(0o700)
    cache = await start_cache(b, "--remote")
    proxy = await start_proxy(a, cache.address, "--remote")
    restoring = Shim(nodes, b, criu_latest).start("restore")
    assert await Shim(nodes, a, criu_latest).start("dump", "-t", check.pid, hook="mine").wait() != 0
    done = await proxy.ended()
    assert done.code == 1 and done.stdout.startswith("aborted")
    await cache.wait_log("aborted")
    assert await restoring.wait() != 0
    await assert_runs(check, a)


async def test_a_dump_without_the_hook_is_refused_where_it_is_insisted_on(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path
) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--remote")
    proxy = await start_proxy(a, cache.address, "--remote", "--hook")
    assert await Shim(nodes, a, criu_latest).start("dump", "-t", check.pid).wait() != 0
    await proxy.wait_stderr("did not announce itself")
    assert (await proxy.ended()).code == 1
    await assert_runs(check, a)


async def test_a_restore_that_fails_can_be_repeated(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """It is killed when it has restored everything and waits for the word."""
    check = await nodes.start_memcheck(a, procs=2)
    cache = await start_cache(b, "--remote")
    proxy = await start_proxy(a, cache.address, "--remote", "--wait-restored")
    dumping = Shim(nodes, a, criu_latest).start("dump", "-t", check.pid, hook="imgproxy-hook")
    await cache.wait_log("complete")
    proxy.signal(signal.SIGSTOP)  # so that it cannot commit
    first = Shim(nodes, b, criu_latest).start("restore", hook="imgcache-hook")
    await cache.wait_log("restored")
    await first.kill9()
    await cache.wait_log("the restore failed; the images are kept")
    proxy.signal(signal.SIGCONT)
    second = Shim(nodes, b, criu_latest).start("restore", hook="imgcache-hook")
    assert await second.wait() == 0, second.stderr
    assert await dumping.wait() == 0
    assert (await proxy.ended()).code == 0
    await assert_runs(check, b)


# ---- rounds ----


async def rounds(nodes: Nodes, a: Node, b: Node, criu: Path, check: SelfCheck, names: Path) -> tuple[Program, Program]:
    """Two pre-dumps and a dump of a process that runs on in between, as `criu --remote -D s0`, `s1`, `s2`; the cache
    and the proxy, which is through."""
    snapshots = ["s0", "s1", "s2"]
    for node in (a, b):
        for snapshot in snapshots:
            (node.directory / snapshot).mkdir(mode=0o700)
    cache = await start_cache(b, "--remote", "-W", b.directory / "s2")
    where = [word for snapshot in snapshots for word in ("-D", a.directory / snapshot)]
    proxy = await start_proxy(a, cache.address, "--remote", *where)
    scratch = [nodes.make_node_dir() for _ in snapshots]
    for number, snapshot in enumerate(snapshots):
        verb, hook = ("dump", "imgproxy-hook") if snapshot == "s2" else ("predump", "")
        before = ["--before", scratch[number - 1]] if number else []
        shim = Shim(nodes, a, criu).start(
            verb, "-t", check.pid, "--names", names, *before, snapshot=snapshot, hook=hook, scratch=scratch[number]
        )
        assert await shim.wait() == 0, shim.stderr
        if snapshot != "s2":
            await check.wait_progress(50)
    return cache, proxy


async def test_pre_dumps_are_restored_as_one_by_stream(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a, size=8 << 20, procs=2)
    cache, proxy = await rounds(nodes, a, b, criu, check, nodes.make_node_dir() / "names")
    assert (await proxy.ended()).code == 0
    restoring = restore(b, criu)
    assert await restoring.wait() == 0
    await cache.wait_log("running")
    await assert_runs(check, b)


async def test_pre_dumps_are_restored_as_they_came(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """CRIU itself puts the layers together, as the original did."""
    check = await nodes.start_memcheck(a, size=8 << 20, procs=2)
    names = nodes.make_node_dir() / "names"
    cache, proxy = await rounds(nodes, a, b, criu_latest, check, names)
    assert (await proxy.ended()).code == 0
    shim = Shim(nodes, b, criu_latest).start("restore", "--names", names, snapshot="s2", hook="imgcache-hook")
    assert await shim.wait() == 0, shim.stderr
    await cache.wait_log("running")
    await assert_runs(check, b)


# ---- one kind in, the other out ----


@VARIANTS
async def test_a_new_dump_for_an_old_restore(nodes: Nodes, a: Node, b: Node, criu_latest: Path, variant: str) -> None:
    check = await nodes.start_memcheck(a, procs=2)
    cache = await start_cache(b, "--remote")
    restoring = Shim(nodes, b, criu_latest, variant).start("restore", hook="imgcache-hook")
    proxy = await start_proxy(a, cache.address)
    assert await dump(a, criu_latest, check.pid).wait() == 0
    assert await restoring.wait() == 0, restoring.stderr
    assert (await proxy.ended()).code == 0
    assert states(cache) == ["session opened", "complete", "restored", "committed", "running"]
    await assert_runs(check, b)


@VARIANTS
async def test_an_old_dump_for_a_new_restore(nodes: Nodes, a: Node, b: Node, criu_latest: Path, variant: str) -> None:
    check = await nodes.start_memcheck(a, procs=2)
    cache = await start_cache(b)
    restoring = restore(b, criu_latest)
    proxy = await start_proxy(a, cache.address, "--remote")
    dumping = Shim(nodes, a, criu_latest, variant).start("dump", "-t", check.pid, hook="imgproxy-hook")
    assert await dumping.wait() == 0, dumping.stderr
    assert await restoring.wait() == 0
    assert (await proxy.ended()).code == 0
    assert states(cache) == ["session opened", "complete", "restored", "committed", "running"]
    await assert_runs(check, b)


async def test_an_old_dump_with_pre_dumps_as_plain_files(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=8 << 20)
    cache, proxy = await rounds(nodes, a, b, criu_latest, check, nodes.make_node_dir() / "names")
    assert (await proxy.ended()).code == 0
    session = next(line["session"] for line in cache.log if line.get("session"))
    target = b.directory / "plain"
    done = await b.run("imgcache", "extract", "-D", b.directory, session, target)
    assert done.code == 0, done.output
    restored = await b.run(criu_latest, "restore", "-D", target, "-d", "-o", "restore.log")
    assert restored.code == 0, (target / "restore.log").read_text()
    await assert_runs(check, b)


async def test_several_at_once_in_one_cache(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """Each has its own id, by which the restores find them."""
    snapshots = ["x0", "x1", "x2"]
    checks = [await nodes.start_memcheck(a, procs=2) for _ in snapshots]
    for node in (a, b):
        for snapshot in snapshots:
            (node.directory / snapshot).mkdir(mode=0o700)
    works = [word for snapshot in snapshots for word in ("-W", b.directory / snapshot)]
    cache = await start_cache(b, "--remote", *works)
    there = Shim(nodes, b, criu_latest)
    restoring = [there.start("restore", snapshot=snapshot, hook="imgcache-hook") for snapshot in snapshots]
    here = Shim(nodes, a, criu_latest)
    proxies, dumps = [], []
    for snapshot, check in zip(reversed(snapshots), checks, strict=True):
        proxies.append(await start_proxy(a, cache.address, "--remote", directory=a.directory / snapshot))
        hook = f"{snapshot}/imgproxy-hook"
        dumps.append(here.start("dump", "-t", check.pid, snapshot=snapshot, hook=hook))
    for program in [*dumps, *restoring, *proxies]:
        assert await program.wait() == 0, program.stderr
    for check in checks:
        await assert_runs(check, b)


# ---- large images ----


async def hand_over_zeros(a: Node, b: Node, size: int, variant: str, *options: object) -> None:
    """An image of pages of `size` bytes, from a client that only talks to one that counts. No process is frozen."""
    fake = [sys.executable, "-m", "tests.fake_remote_criu"]
    nopipe = ["--nopipe"] if variant == "nopipe" else []
    for node in (a, b):
        node.environment["PYTHONPATH"] = str(ROOT)
    cache = await start_cache(b, "--remote", *options)
    proxy = await start_proxy(a, cache.address, "--remote")

    async def play(node: Node, verb: str, *steps: str) -> str:
        words = [*fake, verb, "--remote", "-D", ".", "--in", node.directory, *nopipe, "--steps", *steps]
        program = node.start("sh", "-c", 'cd "$0" && exec "$@"', ROOT, *words)
        done = await program.ended(120)
        assert done.code == 0, done.output
        return done.stdout

    large = f"zeros:pages-1.img:{size}"
    await play(a, "dump", "push", "ids", "image:core-7.img", large, "image:inventory.img", "finish")
    done = await proxy.ended()
    assert done.code == 0, done.output
    found = await play(b, "restore", "ids", "read:core-7.img", "count:pages-1.img", "finish")
    assert f"count {size}" in found
    await cache.wait_log("running")
    await until(lambda: held(cache) == 0, "the memory to be given back")
    assert _anonymous(cache) < 128 << 20, "images are in no memory of its own"


def _anonymous(program: Program) -> int:
    """Bytes of memory that are the program's alone."""
    status = Path(f"/proc/{program.pid}/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.parametrize("variant", ["pipe", pytest.param("nopipe", marks=pytest.mark.t3)])
async def test_two_gibibytes_and_a_page(a: Node, b: Node, variant: str) -> None:
    """A signed number of 32 bits does not count it."""
    await hand_over_zeros(a, b, (2 << 30) + 4096, variant)


@pytest.mark.t3
async def test_five_gibibytes(a: Node, b: Node, tmp_path: Path) -> None:
    """Neither does an unsigned one. Most of it goes to the spool."""
    spool = ["--memory-limit", "256MB", "--spool", tmp_path]
    await hand_over_zeros(a, b, (5 << 30) + 4096, "pipe", *spool)
