"""Certificates that expire while programs run, which their own check at the start cannot foresee."""

import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from tests.nodes import Ended, Node, Nodes, assert_runs, migrate, start_cache

pytestmark = pytest.mark.t2

HOST = "127.0.0.1"
#: Seconds for a program to start and check its certificate; and it tries less than 10 s to connect.
VALID = 8


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class _Authority:
    """Issues certificates into a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ca = trustme.CA()
        self._ca.cert_pem.write_to_path(str(directory / "ca.pem"))

    def issue(self, name: str, end: datetime.datetime) -> list[object]:
        """The options with a certificate for HOST that is valid until `end`."""
        leaf = self._ca.issue_cert(HOST, not_before=_now() - datetime.timedelta(days=10), not_after=end)
        cert, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        leaf.private_key_pem.write_to_path(str(key))
        for blob in leaf.cert_chain_pems:
            blob.write_to_path(str(cert), append=True)
        return ["--tls-cacert", self._directory / "ca.pem", "--tls-cert", cert, "--tls-key", key]


async def _pass(moment: datetime.datetime) -> None:
    """Wait until that is over; certificates count in whole seconds."""
    await trio.sleep((moment - _now()).total_seconds() + 1)


@asynccontextmanager
async def _opening(target: str, moment: datetime.datetime) -> AsyncIterator[str]:
    """An address that takes connections at once and lets them through to `target` after a moment."""
    host, _, port = target.rpartition(":")

    async def forward(near: trio.SocketStream) -> None:
        await _pass(moment)
        async with near, await trio.open_tcp_stream(host, int(port)) as far, trio.open_nursery() as nursery:
            nursery.start_soon(_copy, far, near)
            await _copy(near, far)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, forward, 0, host=HOST))
        yield f"{HOST}:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


async def _copy(source: trio.SocketStream, target: trio.SocketStream) -> None:
    try:
        async for data in source:
            await target.send_all(data)
        await target.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


def _assert_line(done: Ended, *texts: str) -> None:
    """It failed for one reason that holds these texts."""
    assert done.code == 1, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    for text in texts:
        assert text in line


async def test_the_cache_s(nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path) -> None:
    """Sources are told and it is; who comes by another way is served."""
    check = await nodes.start_memcheck(a)
    authority, end = _Authority(node_dir), _now() + datetime.timedelta(seconds=VALID)
    ours = authority.issue("a", end + datetime.timedelta(days=1))
    theirs = authority.issue("b", end)
    other_way = f"unix:{node_dir}/link"
    cache = await start_cache(b, "--allow-restore", "--listen", other_way, *theirs, criu=criu_latest)
    await _pass(end)
    done = await migrate(a, check.pid, cache.address, criu_latest, *ours)
    _assert_line(
        done, cache.address, "TLS: this side refuses the peer: the peer's certificate has expired: make a new set"
    )
    told = await cache.wait_log("TLS with a source failed")
    assert told["error"].startswith(
        "TLS: the peer refuses this side: our certificate has expired there: make a new set"
    )
    await assert_runs(check, a)
    done = await migrate(a, check.pid, other_way, criu_latest)
    assert done.code == 0, done.output
    await assert_runs(check, b)


async def test_the_source_s(nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path) -> None:
    """Both sides are told; a source with a valid one is served."""
    check = await nodes.start_memcheck(a)
    authority, start = _Authority(node_dir), _now()
    later = start + datetime.timedelta(days=1)
    cache = await start_cache(b, "--allow-restore", *authority.issue("b", later), criu=criu_latest)
    end = _now() + datetime.timedelta(seconds=VALID)
    async with _opening(cache.address, end) as address:
        done = await migrate(a, check.pid, address, criu_latest, *authority.issue("a", end))
    _assert_line(done, address, "TLS: the peer refuses this side: our certificate has expired there: make a new set")
    told = await cache.wait_log("TLS with a source failed")
    assert told["error"].startswith(
        "TLS: this side refuses the peer: the peer's certificate has expired: make a new set"
    )
    await assert_runs(check, a)
    done = await migrate(a, check.pid, cache.address, criu_latest, *authority.issue("valid", later))
    assert done.code == 0, done.output
    await assert_runs(check, b)
