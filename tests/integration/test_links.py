"""Ways from proxy to cache, and what the link is told to do."""

import os
import socket
from pathlib import Path

import pytest

from tests.nodes import Node, Nodes, assert_runs, dump, migrate, restore, start_cache, start_proxy, summary

pytestmark = pytest.mark.t2

MIB = 1 << 20


async def test_unix_socket(nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path) -> None:
    check = await nodes.start_memcheck(a, size=4 * MIB)
    address = f"unix:{node_dir}/link"
    cache = await start_cache(b, "--allow-restore", criu=criu_latest, listen=address)
    assert cache.address == address
    done = await migrate(a, check.pid, address, criu_latest)
    assert done.code == 0, done.output
    await assert_runs(check, b)
    await cache.stop()
    assert not list(node_dir.iterdir())


async def test_socket_pair(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=4 * MIB)
    here, there = socket.socketpair()
    with here, there:
        await start_cache(b, listen=f"fd:{there.fileno()}", pass_fds=[there.fileno()])
        proxy = await start_proxy(a, f"fd:{here.fileno()}", pass_fds=[here.fileno()])
    restoring = restore(b, criu_latest)
    assert await dump(a, criu_latest, check.pid).wait() == 0
    assert await restoring.wait() == 0
    assert (await proxy.ended()).code == 0
    await assert_runs(check, b)


async def test_two_pipes(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=4 * MIB)
    a_reads, b_writes = os.pipe()
    b_reads, a_writes = os.pipe()
    await start_cache(b, listen=f"fd:{b_reads},{b_writes}", pass_fds=[b_reads, b_writes])
    proxy = await start_proxy(a, f"fd:{a_reads},{a_writes}", pass_fds=[a_reads, a_writes])
    for descriptor in (a_reads, a_writes, b_reads, b_writes):
        os.close(descriptor)
    restoring = restore(b, criu_latest)
    assert await dump(a, criu_latest, check.pid).wait() == 0
    assert await restoring.wait() == 0
    assert (await proxy.ended()).code == 0
    await assert_runs(check, b)


async def test_compressed(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=8 * MIB, compressible=75)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--json", "--compress", 1)
    assert done.code == 0, done.output
    told = summary(done)
    assert told["image_bytes"] > 8 * MIB
    assert told["wire_bytes"] < told["image_bytes"] / 2
    await assert_runs(check, b)


@pytest.mark.parametrize("choice", ["auto", "off"])
async def test_not_compressed(nodes: Nodes, a: Node, b: Node, criu_latest: Path, choice: str) -> None:
    """Short transfers are over before `auto` believes that the link is slow."""
    check = await nodes.start_memcheck(a, size=4 * MIB, compressible=75)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--json", "--compress", choice)
    assert done.code == 0, done.output
    told = summary(done)
    assert told["image_bytes"] < told["wire_bytes"] < told["image_bytes"] + 100_000
    await assert_runs(check, b)


async def test_auto_compresses_on_a_slow_link(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=48 * MIB, compressible=75)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--json", "--limit-rate", "20MB")
    assert done.code == 0, done.output
    told = summary(done)
    assert told["wire_bytes"] < 0.8 * told["image_bytes"]
    await assert_runs(check, b)


async def test_the_rate_is_limited(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    rate = 8_000_000
    check = await nodes.start_memcheck(a, size=8 * MIB)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--json", "--limit-rate", "8MB", "--compress", "off")
    assert done.code == 0, done.output
    told = summary(done)
    assert told["wire_bytes"] > 8 * MIB
    assert told["phases"]["dump and send"] > 0.85 * told["wire_bytes"] / rate
    await assert_runs(check, b)


async def test_images_past_the_memory_limit_are_spooled(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    spool = nodes.make_node_dir()
    check = await nodes.start_memcheck(a, size=8 * MIB)
    cache = await start_cache(b, "--memory-limit", "2MiB", "--spool", spool)
    proxy = await start_proxy(a, cache.address, "--session", "spooled")
    assert await dump(a, criu_latest, check.pid).wait() == 0
    assert (await proxy.ended()).code == 0
    status = (await b.run("imgcache", "status", "-D", b.directory, "--json")).stdout
    assert '"name": "spooled", "state": "committed"' in status
    sizes = [int(status.partition(f'"{kind}": ')[2].partition(",")[0]) for kind in ("memory", "spool")]
    assert sizes[0] <= 2 * MIB < 6 * MIB < sizes[1]
    assert await restore(b, criu_latest).wait() == 0
    await assert_runs(check, b)
    await cache.stop()
    assert not list(spool.iterdir())


async def test_no_memory_and_no_spool(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """Found out when the images come: only `imgproxy migrate` knows before how many there will be."""
    check = await nodes.start_memcheck(a, size=8 * MIB)
    cache = await start_cache(b, "--memory-limit", "2MiB")
    proxy = await start_proxy(a, cache.address)
    assert await dump(a, criu_latest, check.pid).wait() != 0
    done = await proxy.ended()
    assert done.code == 1
    assert done.stdout.startswith("aborted: the memory limit of 2 MiB is reached and there is no --spool directory\n")
    await assert_runs(check, a)


async def test_memory_released_as_it_is_read(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=16 * MIB, procs=2)
    cache = await start_cache(b, "--release", "read", "--allow-restore", criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest)
    assert done.code == 0, done.output
    await assert_runs(check, b)


def tls_of(directory: Path, name: str) -> list[object]:
    """The options that name a node's files in a set."""
    files = {"--tls-cacert": "ca.pem", "--tls-cert": f"{name}.pem", "--tls-key": f"{name}.key"}
    return [word for option, file in files.items() for word in (option, directory / file)]


async def test_two_networks_with_transport_security(nodes: Nodes, criu_latest: Path) -> None:
    a, b = await nodes.make(network=True), await nodes.make(network=True)
    here, there = await nodes.join(a, b)
    made = await a.run("imgproxy", "certs", a.directory / "set", here, there)
    assert made.code == 0, made.output
    check = await nodes.start_memcheck(a, size=8 * MIB)
    secure = tls_of(a.directory / "set", there)
    cache = await start_cache(b, "--allow-restore", *secure, criu=criu_latest, listen=f"{there}:7000")
    options = tls_of(a.directory / "set", here)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--json", *options)
    assert done.code == 0, done.output
    await assert_runs(check, b)


async def test_plain_between_networks_only_if_insecure_is_said(nodes: Nodes, criu_latest: Path) -> None:
    a, b = await nodes.make(network=True), await nodes.make(network=True)
    _, there = await nodes.join(a, b)
    check = await nodes.start_memcheck(a)
    refused = await b.run("imgcache", "-D", b.directory, "--listen", f"{there}:7000")
    assert refused.code == 2
    assert refused.stderr.startswith(f"imgcache: --listen {there}:7000: anybody there could start a process here; ")
    assert len(refused.output.splitlines()) == 1
    cache = await start_cache(b, "--insecure", "--allow-restore", criu=criu_latest, listen=f"{there}:7000")
    refused = await migrate(a, check.pid, cache.address, criu_latest)
    assert refused.code == 2
    assert "in the clear" in refused.stderr
    assert len(refused.output.splitlines()) == 1
    done = await migrate(a, check.pid, cache.address, criu_latest, "--insecure")
    assert done.code == 0, done.output
    await assert_runs(check, b)


async def test_certificates_that_do_not_do(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    for name, node in (("ours", "127.0.0.1"), ("others", "127.0.0.1"), ("elsewhere", "example.test")):
        assert (await a.run("imgproxy", "certs", a.directory / name, node)).code == 0
    check = await nodes.start_memcheck(a)
    ours = tls_of(a.directory / "ours", "127.0.0.1")
    cache = await start_cache(b, "--allow-restore", *ours, criu=criu_latest)

    async def refused(*options: object, to: str = cache.address) -> str:
        ended = await migrate(a, check.pid, to, criu_latest, *options)
        assert ended.code == 1, ended.output
        assert len(ended.stderr.splitlines()) == 1
        assert ended.stdout == ""
        return ended.stderr

    assert "from another CA" in await refused(*tls_of(a.directory / "others", "127.0.0.1"))
    assert "if it was started with the --tls options, give them here too" in await refused()
    await cache.wait_log("TLS with a source failed")
    elsewhere = tls_of(a.directory / "elsewhere", "example.test")
    plain = await start_cache(b, "--allow-restore", criu=criu_latest, directory=nodes.make_node_dir())
    assert "it may not speak TLS" in await refused(*ours, to=plain.address)
    misnamed = await start_cache(b, "--allow-restore", *elsewhere, criu=criu_latest, directory=nodes.make_node_dir())
    assert "names other" in await refused(*elsewhere, to=misnamed.address)
    await assert_runs(check, a)
    done = await migrate(a, check.pid, cache.address, criu_latest, *ours)
    assert done.code == 0, done.output
