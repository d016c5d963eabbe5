"""Post-copy (`imgproxy migrate --lazy`): the process runs there at once, its memory follows."""

import json
import os
import random
import signal
from pathlib import Path

import pytest

from tests.integration.relay import relaying
from tests.nodes import Ended, Node, Nodes, Program, assert_runs, migrate, start_cache, start_migrate, summary, until
from tests.programs.selfcheck import SelfCheck

pytestmark = pytest.mark.t2

MIB = 1 << 20
#: Seconds for memory to follow on a busy machine, the process waiting for page after page.
SLOWEST = 120.0
SLOW = ("--limit-rate", "20MB", "--compress", "off")  #: so that a test can act while memory follows


async def test_a_tree_with_threads(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a, size=8 * MIB, procs=3, threads=3)
    cache = await start_cache(b, "--allow-restore", criu=criu)
    done = await migrate(a, check.pid, cache.address, criu, "--lazy", "--json", *SLOW, deadline=120)
    assert done.code == 0, done.output
    await assert_runs(check, b)
    told = summary(done)
    assert told["outcome"] == "committed"
    assert told["bytes_by_kind"]["pages-following"] > 3 * 8 * MIB, "all of it followed"
    assert told["bytes_by_kind"]["pages"] < MIB, "but what cannot"
    assert list(told["phases"])[-1] == "resume there"
    phases = [line["phase"] for line in map(json.loads, done.stdout.splitlines()) if line["event"] == "phase"]
    assert any(phase.startswith("runs there, ") and "this node must stay up" in phase for phase in phases)
    await check.finish()
    assert await cache.stop() == 0
    await until(lambda: not a.processes(), "nothing to be left at the source")
    await b.empty()
    assert {path.name for path in (a.directory / "migrations").iterdir()} == {"dump.log"}


@pytest.mark.parametrize("seed", range(5))
async def test_cuts_while_memory_follows(nodes: Nodes, a: Node, b: Node, criu_latest: Path, seed: int) -> None:
    size, cuts = 24 * MIB, 10
    offsets = sorted(random.Random(seed).sample(range(MIB // 2, size), cuts))
    check = await nodes.start_memcheck(a, size=size)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    async with relaying(cache.address, cuts=offsets) as relay:
        options = ("--lazy", "--json", "--compress", "off")
        done = await migrate(a, check.pid, relay.address, criu_latest, *options, deadline=120)
        assert done.code == 0, done.output
        assert (relay.cuts_made, summary(done)["reconnects"]) == (cuts, cuts), done.output
        await assert_runs(check, b)


async def _following(nodes: Nodes, a: Node, b: Node, criu: Path) -> tuple[SelfCheck, Program, Program]:
    """A process whose memory is on its way."""
    check = await nodes.start_memcheck(a, size=24 * MIB, procs=2)
    cache = await start_cache(b, "--allow-restore", criu=criu)
    migrating = start_migrate(a, check.pid, cache.address, criu, "--lazy", *SLOW)
    await cache.wait_log("following")
    return check, cache, migrating


def named(node: Node, words: str) -> list[int]:
    return [pid for pid, line in node.processes().items() if words in line]


def is_stopped(pid: int) -> bool:
    """Stopped, or held by criu, with a stop to come."""
    status = Path(f"/proc/{pid}/status").read_text()
    return "State:\tT" in status or ("State:\tt" in status and "ShdPnd:\t0000000000040000" in status)


async def assert_whole_and_stopped(check: SelfCheck, a: Node, b: Node) -> None:
    await until(lambda: not memchecks(b, check), "nothing to run there")
    assert len(memchecks(a, check)) == check.procs
    await until(lambda: all(map(is_stopped, memchecks(a, check))), "the tree to be stopped here")


def memchecks(node: Node, check: SelfCheck) -> list[int]:
    return [pid for pid in check.pids() if pid in node.processes()]


async def recover(a: Node, *options: object) -> Ended:
    return await a.run(
        "imgproxy", "recover", "--journal", a.directory / "migrations", "--patience", 2, *options, deadline=SLOWEST
    )


async def test_criu_killed_while_it_serves(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check, _, migrating = await _following(nodes, a, b, criu)
    (dumping,) = named(a, " dump ")
    os.kill(dumping, signal.SIGKILL)
    assert await migrating.wait() == 0, migrating.stderr
    await assert_runs(check, b)


@pytest.mark.parametrize("victim", [" lazy-pages ", "lazy_guard"])
async def test_lost_there(nodes: Nodes, a: Node, b: Node, criu_latest: Path, victim: str) -> None:
    check, cache, migrating = await _following(nodes, a, b, criu_latest)
    os.kill(named(b, victim)[-1], signal.SIGKILL)
    assert await migrating.wait() == 3
    assert "stopped" in migrating.stderr
    assert migrating.stdout.startswith("lost: ")
    await cache.wait_log("lost")
    await assert_whole_and_stopped(check, a, b)
    told = await recover(a)
    assert told.code == 1
    assert "--run-here" in told.stdout
    await assert_whole_and_stopped(check, a, b)
    again = await recover(a, "--run-here")
    assert again.code == 0, again.output
    await check.wait_progress()
    await check.verify_memory()


async def test_the_cache_killed_while_memory_follows(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check, cache, migrating = await _following(nodes, a, b, criu_latest)
    await cache.kill9()
    await assert_whole_and_stopped(check, a, b)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest, listen=cache.address)
    assert await migrating.wait() == 3
    assert "whole here, and stopped" in migrating.stderr
    assert (await recover(a, "--run-here")).code == 0
    await check.wait_progress()
    await check.verify_memory()


@pytest.mark.parametrize("watched", [True, False])
async def test_the_proxy_killed_while_memory_follows(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, watched: bool
) -> None:
    """Its action script watches over it, and starts a recovery that sends on what is left; else a person does."""
    check, cache, migrating = await _following(nodes, a, b, criu_latest)
    for pid in [] if watched else named(a, "imgproxy.hook"):
        os.kill(pid, signal.SIGKILL)
    await migrating.kill9()
    if not watched:
        await until(lambda: all(map(is_stopped, memchecks(a, check))), "the tree to be stopped here")
        told = await recover(a)
        assert told.code == 0, told.output
        assert told.stdout.endswith("the process runs at the destination, with all its memory\n")
    await cache.wait_log("running", deadline=SLOWEST)
    await until(lambda: not memchecks(a, check), "the tree to be ended here")
    await assert_runs(check, b)
    await until(lambda: not list((a.directory / "migrations").glob("*.journal")), "it to be forgotten")


async def test_dropped_while_memory_follows(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check, cache, migrating = await _following(nodes, a, b, criu_latest)
    for pid in [*named(a, "imgproxy.hook"), *named(b, " lazy-pages ")]:
        os.kill(pid, signal.SIGSTOP)
    await migrating.kill9()
    await until(lambda: all(map(is_stopped, memchecks(a, check))), "the tree to be stopped here")
    refused = await recover(a, "--run-here")
    assert refused.code == 2, "it would run twice"
    dropped = await b.run("imgcache", "drop", "--force", "-D", b.directory, cache.log[-1]["session"])
    assert dropped.code == 0, dropped.output
    await cache.wait_log("lost")
    await assert_whole_and_stopped(check, a, b)
    assert (await recover(a, "--run-here")).code == 0
    await check.wait_progress()
    await check.verify_memory()


async def test_the_cache_stops_when_the_memory_is_there(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check, cache, migrating = await _following(nodes, a, b, criu_latest)
    assert await cache.stop() == 0
    assert await migrating.wait() == 0
    await assert_runs(check, b)


@pytest.mark.parametrize("victim", ["migrate", " dump ", " restore ", " lazy-pages ", "lazy_guard", "imgcache -D"])
async def test_killed_before_the_commit(nodes: Nodes, a: Node, b: Node, criu_latest: Path, victim: str) -> None:
    """At the moment that it is complete: nothing was given up, it runs on here."""
    check = await nodes.start_memcheck(a, size=8 * MIB, procs=2)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    migrating = start_migrate(a, check.pid, cache.address, criu_latest, "--lazy", "--timeout", 10, "--reconnect", 1)
    await cache.wait_log("complete")
    await until(lambda: any(named(node, victim) for node in (a, b)), f"{victim} to have started")
    for node in (a, b):
        for pid in named(node, victim):
            os.kill(pid, signal.SIGKILL)
    assert await migrating.wait() != 0
    await assert_one_history(check, a, b)


async def assert_one_history(check: SelfCheck, a: Node, b: Node) -> None:
    """It runs here; or it had just been committed, and is whole and stopped here."""

    def settled() -> bool:
        return not memchecks(b, check) and len(memchecks(a, check)) == check.procs

    await until(settled, "nothing to run there")
    if any(map(is_stopped, memchecks(a, check))):
        await recover(a, "--run-here")
    await check.wait_progress()
    await check.verify_memory()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--no-wait-restored"], "leave --no-wait-restored out"),
        (["--tcp-established"], "--tcp-established"),
        (["--action-script", "/bin/true"], "leave --action-script out"),
    ],
)
async def test_refused(nodes: Nodes, a: Node, criu_latest: Path, options: list[str], reason: str) -> None:
    check = await nodes.start_memcheck(a)
    done = await migrate(a, check.pid, "127.0.0.1:1", criu_latest, "--lazy", *options)
    assert done.code == 2
    assert reason in done.stderr


async def test_a_link_that_cannot_be_made_again_is_refused(nodes: Nodes, a: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a)
    done = await migrate(a, check.pid, "fd:0,1", criu_latest, "--lazy")
    assert done.code == 2
    assert "must be made again" in done.stderr


@pytest.mark.parametrize("dedup", [(), ("--dedup",)], ids=["plain", "dedup"])
async def test_with_transport_security(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, dedup: tuple[str, ...]
) -> None:
    """Pages pass through memory then, and a cut in the middle of one costs nothing either."""
    made = await a.run("imgproxy", "certs", a.directory / "set", "127.0.0.1")
    assert made.code == 0, made.output
    names = {"--tls-cacert": "ca.pem", "--tls-cert": "127.0.0.1.pem", "--tls-key": "127.0.0.1.key"}
    tls = [word for option, name in names.items() for word in (option, a.directory / "set" / name)]
    check = await nodes.start_memcheck(a, size=8 * MIB)
    cache = await start_cache(b, "--allow-restore", *tls, criu=criu_latest)
    async with relaying(cache.address, cuts=[3 * MIB, 5 * MIB]) as relay:
        done = await migrate(a, check.pid, relay.address, criu_latest, "--lazy", "--compress", "off", *tls, *dedup)
        assert done.code == 0, done.output
        await assert_runs(check, b)
