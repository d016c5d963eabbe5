"""The connection between the nodes is cut, for a moment or for good, or damages what it carries."""

import random
from pathlib import Path

import pytest

from imgnode.channel import WINDOW
from tests.integration.relay import relaying
from tests.nodes import Node, Nodes, assert_runs, dump, migrate, restore, start_cache, start_proxy, summary

pytestmark = pytest.mark.t2

MIB = 1 << 20


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_cuts_at_any_byte_cost_nothing_but_time(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, seed: int
) -> None:
    size, cuts = 16 * MIB, 5
    offsets = random.Random(seed).sample(range(1, size), cuts)
    check = await nodes.start_memcheck(a, size=size, procs=1)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    async with relaying(cache.address, cuts=[2000 + offset for offset in offsets]) as relay:
        done = await migrate(a, check.pid, relay.address, criu_latest, "--json", "--compress", "off")
        assert done.code == 0, done.output
        told = summary(done)
        assert relay.cuts_made == cuts
        assert told["reconnects"] == cuts
        assert told["wire_bytes"] > told["image_bytes"]
        await assert_runs(check, b)


async def test_what_is_sent_again_is_less_than_a_window(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=80 * MIB)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    async with relaying(cache.address, cuts=[70 * MIB]) as relay:
        done = await migrate(a, check.pid, relay.address, criu_latest, "--json", "--compress", "off")
        assert done.code == 0, done.output
        told = summary(done)
        assert told["reconnects"] == 1
        assert told["wire_bytes"] - told["image_bytes"] < WINDOW + MIB
        await assert_runs(check, b)


async def test_a_cut_with_transport_security(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    made = await a.run("imgproxy", "certs", a.directory / "set", "127.0.0.1")
    assert made.code == 0, made.output
    names = {"--tls-cacert": "ca.pem", "--tls-cert": "127.0.0.1.pem", "--tls-key": "127.0.0.1.key"}
    tls = [word for option, name in names.items() for word in (option, a.directory / "set" / name)]
    check = await nodes.start_memcheck(a, size=8 * MIB)
    cache = await start_cache(b, "--allow-restore", *tls, criu=criu_latest)
    async with relaying(cache.address, cuts=[3 * MIB, 5 * MIB]) as relay:
        done = await migrate(a, check.pid, relay.address, criu_latest, "--json", *tls)
        assert done.code == 0, done.output
        assert summary(done)["reconnects"] == 2
        await assert_runs(check, b)


async def test_a_link_that_stays_dead_leaves_the_process_at_the_source(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path
) -> None:
    check = await nodes.start_memcheck(a, size=8 * MIB)
    cache = await start_cache(b, "--allow-restore", "--source-timeout", 1, criu=criu_latest)
    async with relaying(cache.address, cuts=[3 * MIB], stays_dead=True) as relay:
        done = await migrate(a, check.pid, relay.address, criu_latest, "--reconnect", 1, deadline=60)
        assert done.code == 1
        assert done.stdout.startswith("aborted: cut off for 1 s; ")
        assert "nothing listens there" in done.stdout
        await assert_runs(check, a)
        await cache.wait_log("aborted", reason="the source has been gone for 1 s")
    await cache.stop()
    await b.empty()  # the restore that waited has ended


async def test_a_dead_link_in_the_manual_flow(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=8 * MIB)
    cache = await start_cache(b, "--source-timeout", 1)
    restoring = restore(b, criu_latest)
    async with relaying(cache.address, cuts=[3 * MIB], stays_dead=True) as relay:
        proxy = await start_proxy(a, relay.address, "--reconnect", 1)
        assert await dump(a, criu_latest, check.pid).wait() != 0
        done = await proxy.ended()
        assert done.code == 1
        assert "cut off for 1 s" in done.output
        await assert_runs(check, a)
        assert await restoring.wait() != 0


async def test_damaged_pages_are_noticed_if_they_are_digested(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path
) -> None:
    check = await nodes.start_memcheck(a, size=8 * MIB)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    async with relaying(cache.address, damages=[4 * MIB + 4321]) as relay:
        done = await migrate(a, check.pid, relay.address, criu_latest, "--digest-pages", "--compress", "off")
        assert done.code == 1
        assert "digest" in done.stdout.splitlines()[0]
        await assert_runs(check, a)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--digest-pages")
    assert done.code == 0, done.output
    await assert_runs(check, b)
