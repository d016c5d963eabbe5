"""Sessions that original image-proxies fill: as recorded, by the bytes, cut, wrong, several at once."""

import itertools
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from imgcache import original_link
from imgcache.arena import MemoryBudget
from imgcache.host import Host, HostConfig
from imgcache.original_link import Arrival, OriginalLink
from imgcache.registry import Registry
from imgcache.requests import Requests
from imgcache.session import Session
from imgnode.metrics import Metrics
from imgnode.nursery import flat_nursery
from imgnode.transport import SocketTransport
from imgwire.img_remote_messages import OpenMode, RemoteEntry
from imgwire.img_remote_stream import RemoteStream
from imgwire.states import SessionState
from tests.original_wire import FakeImageProxy, ids, image, recording
from tests.playbook import open_session, random_bytes, virtual_time

pytestmark = pytest.mark.t1

DUMP = {
    "fdinfo-2.img": b"f" * 56,
    "pages-1.img": random_bytes(3_000_001),
    "core-7.img": b"c",
    "pstree.img": b"p" * 26,
    "inventory.img": b"i" * 49,
    "seccomp.img": b"s" * 12,
}


def dump(snapshot: str = "s1", images: dict[str, bytes] = DUMP) -> bytes:
    return ids([snapshot]) + b"".join(image(name, snapshot, body) for name, body in images.items())


class Cache:
    """A cache that original proxies can connect to."""

    def __init__(self, directory: Path, nursery: trio.Nursery, limit: int | None) -> None:
        (directory / "journal").mkdir()
        self.registry = Registry(directory, directory / "journal", None, limit, Metrics())
        host = Host(self.registry, Requests(self.registry), HostConfig())
        self.link = OriginalLink(self.registry, host, nursery)
        self._nursery = nursery
        self.address = ""

    async def listen(self, *, task_status: "trio.TaskStatus[None]") -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        async with listener, flat_nursery() as nursery:
            task_status.started()
            while True:
                sock, _ = await listener.socket.accept()
                nursery.start_soon(self.link.serve, SocketTransport(sock))

    async def session(self, state: SessionState, number: int = 0) -> Session:
        """The session of that number, once it is in that state."""
        sessions: list[Session] = []

        def there() -> bool:
            sessions[:] = list(self.registry)
            return len(sessions) > number

        await self.registry.changes.wait_until(there)
        session = sessions[number]
        await session.changes.wait_until(lambda: session.state is state)
        return session

    @asynccontextmanager
    async def proxy(self) -> AsyncIterator[FakeImageProxy]:
        proxy = await FakeImageProxy.connect(self.address)
        try:
            yield proxy
        finally:
            await proxy.close()


@asynccontextmanager
async def running(directory: Path, *, limit: int | None = None) -> AsyncIterator[Cache]:
    async with flat_nursery() as nursery:
        with trio.fail_after(20):
            cache = Cache(directory, nursery, limit)
            await nursery.start(cache.listen)
            yield cache
        nursery.cancel_scope.cancel()


@contextmanager
def temporary_session() -> Iterator[Session]:
    """A session where no fixture reaches: in each example of hypothesis, under a clock that jumps."""
    with TemporaryDirectory() as directory, open_session(Path(directory)) as session:
        yield session


def contents(session: Session) -> dict[str, bytes]:
    return {image.name: image.read(0, image.size) for image in session.store}


async def test_a_dump_becomes_a_committed_session(node_dir: Path) -> None:
    async with running(node_dir) as cache, cache.proxy() as proxy:
        await proxy.send(dump())
        receiving = await cache.session(SessionState.RECEIVING)
        assert receiving.name.startswith("remote-") and receiving.source.attached
        await proxy.finish()
        session = await cache.session(SessionState.COMMITTED)
        assert contents(session) == DUMP
        assert [one.snapshot for one in session.store.rounds] == ["s1"]
        assert await cache.registry.claim(None) is session, "a restore gets it"


async def test_pages_do_not_pass_through_this_program(node_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    receive = SocketTransport.receive_some

    async def counted(transport: SocketTransport, size: int) -> bytes:
        data = await receive(transport, size)
        read.append(len(data))
        return data

    monkeypatch.setattr(SocketTransport, "receive_some", counted)
    async with running(node_dir) as cache, cache.proxy() as proxy:
        await proxy.send(dump())
        await proxy.finish()
        await cache.session(SessionState.COMMITTED)
    assert sum(read) == len(dump()) - sum(map(len, DUMP.values()))


@pytest.mark.parametrize(
    ("name", "rounds", "reason"),
    [
        ("stream-pipe-dump", {"s1": 12}, ""),
        ("stream-inc-2predumps-dump", {"s1": 3, "s2": 3, "s3": 12}, ""),
        (
            "stream-orig-appends",
            dict.fromkeys(["s1", "s2", "s3-longer", "s4", "s5-longest-of-all"], 2),
            "the stream ends without pstree.img of s5-longest-of-all: the dump has failed",
        ),
        (
            "stream-orig-2predumps-corrupt",
            {"s1": 3, "s2": 2},
            "inventory.img of s2: the connection ended after 0 of its 17 bytes",
        ),
    ],
)
async def test_recordings(node_dir: Path, name: str, rounds: dict[str, int], reason: str) -> None:
    raw = recording(name)
    async with running(node_dir) as cache, cache.proxy() as proxy:
        await proxy.send(raw)
        await proxy.finish()
        session = await cache.session(SessionState.ABORTED if reason else SessionState.COMMITTED)
        assert session.reason.startswith(reason)
        assert {one.snapshot: len(one.images) for one in session.store.rounds} == rounds
        if not reason:
            assert len(session.store) == 12, "one checkpoint, merged"
            assert all(image.read(0, image.size) for image in session.store)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (dump()[:-1], "seccomp.img of s1: the connection ended after 11 of its 12 bytes"),
        (dump() + b"\x17\0", "the stream ends in the middle of an image"),
        (ids(["s1"]), "the image-proxy left without an image"),
        (dump(images={name: DUMP[name] for name in DUMP if name != "inventory.img"}), "without inventory.img of s1"),
        (
            dump(images={"pages-1.img": b"p", "pagemap-7.img": b"m", "inventory.img": b"i"}),
            "the stream ends after the pre-dump s1: the dump has not come",
        ),
        (dump() + image("pstree.img", "s1", b"again"), "pstree.img (number 6): opened twice"),
        (dump("s1") + image("a.img", "s2", b"x") + image("b.img", "s1", b"x"), "b.img: is of round 1, which"),
        (b"\x05\0\0\0hello", "field 13 of wire type 4"),
        (b"\x05\0\0\0", "the stream ends in the middle of an image"),
    ],
    ids=["image cut", "header cut", "none", "no inventory", "pre-dump only", "twice", "old round", "garbage", "length"],
)
async def test_what_ends_badly_is_aborted_with_the_reason(node_dir: Path, raw: bytes, reason: str) -> None:
    async with running(node_dir) as cache, cache.proxy() as proxy:
        with suppress(trio.BrokenResourceError):  # it may be turned away before the end
            await proxy.send(raw)
            await proxy.finish()
        assert reason in (await cache.session(SessionState.ABORTED)).reason


async def test_who_is_no_image_proxy_leaves_no_session(node_dir: Path) -> None:
    async with running(node_dir) as cache:
        async with cache.proxy() as proxy:
            await proxy.send(b"GET / HTTP/1.1\r\n\r\n")
            session = await cache.session(SessionState.ABORTED)
            assert "the limit is 8192" in session.reason
        async with cache.proxy(), cache.proxy() as other:
            await other.send(dump())
            await cache.session(SessionState.RECEIVING, 1)
            assert len(list(cache.registry)) == 2, "the silent one has none"


async def test_several_at_once_do_not_disturb_each_other(node_dir: Path) -> None:
    raw = dump()
    async with running(node_dir) as cache, cache.proxy() as a, cache.proxy() as b, cache.proxy() as c:
        await a.send(raw[:1_000_000])
        await cache.session(SessionState.RECEIVING, 0)
        await b.send(raw[:2_000_000])
        await cache.session(SessionState.RECEIVING, 1)
        await c.send(raw[:500_000])
        await cache.session(SessionState.RECEIVING, 2)
        await c.close()
        await cache.session(SessionState.ABORTED, 2)
        await a.send(raw[1_000_000:])
        await b.send(raw[2_000_000:])
        await b.finish()
        await a.finish()
        for number in (0, 1):
            assert contents(await cache.session(SessionState.COMMITTED, number)) == DUMP


async def test_a_source_that_goes_without_a_word_is_noticed(node_dir: Path) -> None:
    async with running(node_dir) as cache:
        stream = await trio.open_tcp_stream("127.0.0.1", int(cache.address.rpartition(":")[2]))
        await stream.send_all(dump())
        session = await cache.session(SessionState.RECEIVING)
        await session.changes.wait_until(lambda: session.source.attached)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await stream.aclose()
        await cache.session(SessionState.ABORTED)
        assert "the connection" in session.reason


async def test_the_memory_limit_holds(node_dir: Path) -> None:
    async with running(node_dir, limit=1 << 20) as cache, cache.proxy() as proxy:
        with pytest.raises(trio.BrokenResourceError):
            for _ in itertools.count():
                await proxy.send(image("pages-1.img", "s1", bytes(1 << 21)))
        session = await cache.session(SessionState.ABORTED)
        assert "the memory limit of 1 MiB is reached" in session.reason


async def test_an_image_of_5_gib_takes_no_memory_before_it_comes(node_dir: Path) -> None:
    budget = MemoryBudget(1 << 24)
    with open_session(node_dir, budget=budget) as session:
        ours, theirs = trio.socket.socketpair()
        with ours, theirs:
            header = RemoteEntry("pages-1.img", "s1", OpenMode.WRITE, 5 << 30).encode()
            await ours.send(header[4:] + bytes(1000))
            ours.shutdown(socket.SHUT_WR)
            stream = RemoteStream()
            await Arrival(SocketTransport(theirs), stream, session, header[:4]).receive()
        assert session.reason == f"pages-1.img of s1: the connection ended after 1000 of its {5 << 30} bytes"
        assert budget.used == 0


@virtual_time
async def test_a_source_may_rest_between_images_but_not_in_a_header() -> None:
    ours, theirs = trio.socket.socketpair()
    with ours, theirs:
        async with flat_nursery() as nursery:
            with temporary_session() as session:
                raw = image("a.img", "s1", b"abc")
                arrival = Arrival(SocketTransport(theirs), RemoteStream(), session, raw[:4])
                nursery.start_soon(arrival.receive)
                await ours.send(raw[4:])
                await trio.sleep(7 * 3600)
                assert session.state is SessionState.RECEIVING and session.store.size == 3
                await ours.send(raw[:5])
                await session.changes.wait_until(lambda: session.over)
                assert session.reason == "the image-proxy stopped for 10 s in the middle of a header"


async def test_silent_connections_are_counted(node_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original_link, "MAX_SILENT", 2)
    async with running(node_dir) as cache:
        streams = [await trio.open_tcp_stream("127.0.0.1", int(cache.address.rpartition(":")[2])) for _ in range(3)]
        assert await streams[2].receive_some(1) == b"", "turned away"
        await streams[0].send_all(dump())
        await cache.session(SessionState.RECEIVING)
        async with cache.proxy() as proxy:
            await proxy.send(dump())
            await cache.session(SessionState.RECEIVING, 1)
        for stream in streams:
            await stream.aclose()


async def test_a_stopping_cache_takes_no_new_session(node_dir: Path) -> None:
    async with running(node_dir) as cache:
        cache.link.stopping = True
        stream = await trio.open_tcp_stream("127.0.0.1", int(cache.address.rpartition(":")[2]))
        await stream.send_all(ids(["s1"])[:4])
        assert await stream.receive_some(1) == b""
        assert not list(cache.registry)
        await stream.aclose()


CONVERSATION = ids(["s1"]) + b"".join(
    [
        image("pages-1.img", "s1", b"m" * 9),
        image("inventory.img", "s1", b"i" * 17),
        ids(["s1", "s2"], 8),
        image("pstree.img", "s2", b"p" * 30),
        image("empty.img", "s2", b""),
        image("inventory.img", "s2", b"i" * 20),
    ]
)


@given(st.lists(st.integers(1, len(CONVERSATION) - 1), max_size=12), st.booleans())
def test_any_split_and_any_cut(cuts: list[int], whole: bool) -> None:
    """However the stream is cut into pieces, it means the same; cut short, it is never committed."""
    places = sorted(set(cuts))
    end = len(CONVERSATION) if whole or not places else places.pop()
    trio.run(_check_split, places, end)


async def _check_split(places: list[int], end: int) -> None:
    ours, theirs = trio.socket.socketpair()
    with ours, theirs, temporary_session() as session:
        arrival = Arrival(SocketTransport(theirs), RemoteStream(), session, CONVERSATION[:1])
        async with flat_nursery() as nursery:
            nursery.start_soon(arrival.receive)
            for start, stop in itertools.pairwise([1, *(place for place in places if 1 < place < end), max(1, end)]):
                await ours.send(CONVERSATION[start:stop])
                await trio.testing.wait_all_tasks_blocked()
            ours.shutdown(socket.SHUT_WR)
        if end == len(CONVERSATION):
            assert session.state is SessionState.COMMITTED
            assert {name: len(body) for name, body in contents(session).items()} == {
                "pstree.img": 30,
                "empty.img": 0,
                "inventory.img": 20,
            }
        else:
            assert session.state is SessionState.ABORTED and session.reason
