"""The destination's end of the link, and the source's: sessions opened, refused, resumed, resolved."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from imgcache.host import Host, HostConfig
from imgcache.link_server import LinkServer
from imgcache.registry import Registry
from imgcache.requests import Requests
from imgnode.greeting import SessionRefused, open_session, resolve_session
from imgnode.metrics import Metrics
from imgnode.nursery import flat_nursery
from imgnode.transport import Transport
from imgwire.messages import Hello, Resolve
from imgwire.states import SessionState
from tests.playbook import IDENTITY, socket_pair

pytestmark = pytest.mark.t1

OTHER = "0" * 32


class Cache:
    """A cache without sockets of its own."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        (directory / "journal").mkdir()
        self.registry = Registry(directory, directory / "journal", None, None, Metrics())
        host = Host(self.registry, Requests(self.registry), HostConfig())
        self.server = LinkServer(self.registry, host, nursery, self._facts)
        self._nursery = nursery

    async def _facts(self) -> dict[str, object]:
        await trio.lowlevel.checkpoint()
        return {"cpus": 2}

    @asynccontextmanager
    async def dialled(self) -> AsyncIterator[Transport]:
        ours, theirs = socket_pair()
        self._nursery.start_soon(self.server.serve, theirs)
        try:
            yield ours
        finally:
            await ours.aclose()


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Cache]:
    async with flat_nursery() as nursery:
        yield Cache(directory, nursery)
        nursery.cancel_scope.cancel()


async def test_a_session_is_opened_and_the_node_described(node_dir: Path) -> None:
    async with running(node_dir) as cache, cache.dialled() as link:
        _, welcome = await open_session(link, Hello(IDENTITY, "web-1"))
        assert (welcome.version, welcome.received, welcome.facts) == (1, 0, {"cpus": 2})
        session = cache.registry.get(IDENTITY)
        assert session is not None and (node_dir / "web-1" / "streamer-serve.sock").is_socket()
    assert not (node_dir / "web-1").exists()


@pytest.mark.parametrize(
    ("hello", "reason"),
    [
        (Hello(IDENTITY, "other"), "already open"),
        (Hello(OTHER, "web-1"), "a session named web-1 is under way"),
        (Hello(OTHER, "x", version=9, oldest=2), "speaks link versions 2 to 9"),
        (Hello(OTHER, "x", resume=True), "has been restarted"),
    ],
    ids=["same id", "same name", "newer", "unknown"],
)
async def test_a_session_is_refused_with_the_reason(node_dir: Path, hello: Hello, reason: str) -> None:
    async with running(node_dir) as cache, cache.dialled() as first, cache.dialled() as second:
        await open_session(first, Hello(IDENTITY, "web-1"))
        with pytest.raises(SessionRefused, match=reason):
            await open_session(second, hello)
        assert len(cache.registry.live()) == 1


async def test_a_stopping_cache_takes_no_new_session(node_dir: Path) -> None:
    async with running(node_dir) as cache, cache.dialled() as link:
        cache.server.stopping = True
        with pytest.raises(SessionRefused, match="is stopping"):
            await open_session(link, Hello(IDENTITY, "web-1"))


async def test_a_session_is_resumed_by_who_knows_its_id(node_dir: Path) -> None:
    async with running(node_dir) as cache:
        async with cache.dialled() as link:
            await open_session(link, Hello(IDENTITY, "web-1"))
        async with cache.dialled() as again:
            await open_session(again, Hello(IDENTITY, "web-1", resume=True))
            session = cache.registry.get(IDENTITY)
            assert session is not None
            with trio.fail_after(5):  # the answer comes before the connection is in use
                await session.changes.wait_until(lambda: session.source.attached)


async def test_garbage_ends_only_its_connection(node_dir: Path) -> None:
    async with running(node_dir) as cache, cache.dialled() as good:
        await open_session(good, Hello(IDENTITY, "web-1"))
        async with cache.dialled() as bad:
            await bad.send_all(b"GET / HTTP/1.1\r\n\r\n" * 10)
            with pytest.raises(trio.BrokenResourceError):  # reset: what was left of it was not read
                await bad.receive_some(1)
        assert [session.state for session in cache.registry] == [SessionState.RECEIVING]


async def test_a_source_tells_how_it_ended(node_dir: Path) -> None:
    async with running(node_dir) as cache:
        async with cache.dialled() as link:
            await open_session(link, Hello(IDENTITY, "web-1"))
        async with cache.dialled() as link:
            assert await resolve_session(link, Resolve(IDENTITY, commit=False, reason="x")) == "aborted"
        async with cache.dialled() as link:
            with pytest.raises(SessionRefused, match=r"knows nothing of the session|it was aborted here: x"):
                await resolve_session(link, Resolve(IDENTITY, commit=True))
        async with cache.dialled() as link:
            assert await resolve_session(link, Resolve(OTHER, commit=False)) == "aborted"
        async with cache.dialled() as link:
            with pytest.raises(SessionRefused, match="knows nothing of the session"):
                await resolve_session(link, Resolve(OTHER, commit=True))
