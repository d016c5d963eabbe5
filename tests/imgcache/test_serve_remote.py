"""`criu restore --remote` at the cache: what it gets, when, and what becomes of one that misbehaves.

The client is this process, but it passes for a process of its own (which can be killed, and has CRIU's command line);
in some tests it is one.
"""

import hashlib
import os
import secrets
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import structlog.testing
import trio
import trio.testing

from imgcache.leftovers import Leftovers
from imgcache.registry import Registry
from imgcache.serve.remote import RemoteRestores
from imgcache.session import Attempt, Session
from imgnode import remote_client
from imgnode.metrics import Metrics
from imgnode.nursery import flat_nursery
from imgnode.unix import PeerCredentials
from imgwire.messages import BeginRound, EndImage, Hello, ImagesComplete, OpenImage
from imgwire.states import SessionState
from tests.fake_remote_criu import CACHE, RemoteCriu, command, entry, hung_up
from tests.playbook import random_bytes
from tests.transform.synthetic import extent, pagemap
from transform.extents import PAGE_SIZE, PE_PARENT, PE_PRESENT

pytestmark = pytest.mark.t1

VARIANTS = pytest.mark.parametrize("variant", ["pipe", "nopipe"])
HOOK = ("--action-script", "/run/x/imgcache-hook")
Images = dict[str, bytes]
Rounds = dict[str, Images]

#: Two pre-dumps and a dump of one task with 300 pages, a third of which changes each time.
COUNT, BASE = 300, 0x7F0000000000


def _layer(number: int) -> Images:
    fresh = COUNT if number == 0 else COUNT // 3
    flags = [(0, fresh, PE_PRESENT), *([(fresh, COUNT - fresh, PE_PARENT)] if number else [])]
    entries = [extent(BASE + start * PAGE_SIZE, count, flag) for start, count, flag in flags]
    return {
        "pages-1.img": random_bytes(fresh * PAGE_SIZE, number),
        "pagemap-7.img": pagemap(1, *entries),
        "inventory.img": f"inventory {number}".encode(),
    }


ROUNDS: Rounds = {
    "s0": _layer(0),
    "s1": _layer(1),
    "s2": _layer(2) | {"core-7.img": b"c" * 5000, "files.img": b"", "pages-2.img": b""},
}
SINGLE: Rounds = {"s1": {"inventory.img": b"i", "pages-1.img": random_bytes(3_000_000, 9), "core-7.img": b"c"}}


def put(session: Session, name: str, data: bytes, number: int, in_round: int) -> None:
    """Give the session an image as the link would, without a link."""
    store = session.store
    session.on_message(OpenImage(number, name, False, in_round))
    stored = store.numbered(number)
    if data:
        place = store.arena.reserve(len(data), stored.heap.last)
        assert os.pwrite(place.fd, data, place.offset) == len(data)
        stored.add(place)
    session.on_message(EndImage(number, len(data)))


class Cache:
    """A cache that listens for restores; `criu` is who the client passes for."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (directory / "journal").mkdir()
        self.directory = directory
        self.registry = Registry(directory, directory / "journal", None, None, Metrics())
        self.restores = RemoteRestores(self.registry)
        self._processes = ExitStack()
        self._pid: int | None = None
        monkeypatch.setattr(remote_client, "peer_credentials", self._peer)

    def _peer(self, sock: trio.socket.SocketType) -> PeerCredentials:
        pid, uid, _ = (int.from_bytes(part, "little") for part in _thirds(sock))
        return PeerCredentials(pid if self._pid is None else self._pid, uid)

    def criu(self, snapshot: str, variant: str = "pipe", *, hooked: bool = True, visible: bool = True) -> RemoteCriu:
        """A restore with -D `snapshot`. All connections of this process are its own from now on."""
        words = ["restore", "--remote", "-D", snapshot, *(HOOK if hooked else ())]
        lives = ["sh", "-c", "echo; read end", *words]
        process = subprocess.Popen(lives, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._processes.callback(_end, process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"\n", "before, its command line may not be seen"
        self._pid = process.pid if visible else 0
        return RemoteCriu(CACHE, self.directory, snapshot, variant)

    def kill(self) -> None:
        """Kill the CRIU that was made last."""
        assert self._pid
        os.kill(self._pid, 9)

    def be_oneself(self) -> None:
        """Connections are of whom they are."""
        self._pid = None

    def hide(self) -> None:
        """The next connections come out of a pid namespace that cannot be seen."""
        self._pid = 0

    def session(self, rounds: Rounds, variant: str = "pipe", name: str = "", *, complete: bool = True) -> Session:
        """A session that came by --remote; by --stream if its only id is ""."""
        identity = secrets.token_hex(16)
        session = self.registry.create(Hello(identity, name or identity[:8], wait_restored=True))
        numbers = iter(range(1000))
        for number, (snapshot, images) in enumerate(rounds.items(), 1):
            if snapshot:
                session.on_message(BeginRound(number, snapshot))
            for image_name, data in images.items():
                put(session, image_name, data, next(numbers), number if snapshot else 0)
        if complete:
            self.complete(session, variant)
        return session

    def complete(self, session: Session, variant: str = "pipe") -> None:
        images = sum(len(one.images) for one in session.store.rounds)
        session.on_message(ImagesComplete(images, session.store.size, variant))
        assert session.state is SessionState.COMPLETE, session.reason

    def close(self) -> None:
        self._processes.close()
        for session in self.registry:
            session.store.arena.close()
            session.source.channel.close()


def _thirds(sock: trio.socket.SocketType) -> Iterator[bytes]:
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    return iter((raw[:4], raw[4:8], raw[8:]))


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.stdout.close()


@pytest.fixture
async def cache(node_dir: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Cache]:
    monkeypatch.setattr(Leftovers, "PATIENCE", 0.2)
    made = Cache(node_dir, monkeypatch)
    try:
        yield made
    finally:
        made.close()


@asynccontextmanager
async def serving(cache: Cache) -> AsyncIterator[None]:
    """What the cache raises comes out here."""
    with trio.fail_after(20):
        async with flat_nursery() as nursery:
            await nursery.start(cache.restores.take, cache.directory / CACHE, None)
            yield
            nursery.cancel_scope.cancel()


async def until(session: Session, state: SessionState) -> None:
    await session.changes.wait_until(lambda: session.state is state)


async def failed(session: Session, times: int) -> None:
    await session.changes.wait_until(lambda: session.failures == times)


async def attempted(session: Session) -> Attempt:
    await session.changes.wait_until(lambda: session.attempt is not None)
    assert session.attempt is not None
    return session.attempt


async def released(cache: Cache, session: Session) -> None:
    await cache.registry.changes.wait_until(lambda: not session.claimed)


async def blocked() -> None:
    """Until nothing goes on without one who says more."""
    await trio.testing.wait_all_tasks_blocked(0.02)


async def read_all(criu: RemoteCriu, rounds: Rounds) -> Rounds:
    found: Rounds = {}
    for snapshot, images in rounds.items():
        found[snapshot] = {}
        for name in images:
            data = await criu.read(name, snapshot)
            assert data is not None, name
            found[snapshot][name] = data
    return found


@VARIANTS
async def test_every_image_of_every_id(cache: Cache, variant: str) -> None:
    session = cache.session(ROUNDS, variant)
    async with serving(cache):
        criu = cache.criu("s2", variant)
        assert await criu.ids() == ["s0", "s1", "s2"]
        assert session.attempt is not None and session.attempt.hooked
        for _ in range(2):
            assert await read_all(criu, ROUNDS) == ROUNDS
        assert await criu.read("cgroup.img") is None
        assert await criu.read("core-7.img", "s0") is None, "each id has its own images"
        assert await criu.read("core-7.img", "s3") is None


@VARIANTS
async def test_the_end_of_a_restore_says_that_it_runs(cache: Cache, variant: str) -> None:
    session = cache.session(SINGLE, variant)
    async with serving(cache):
        criu = cache.criu("s1", variant)
        assert await criu.ids() == ["s1"]
        session.commit()
        assert await read_all(criu, SINGLE) == SINGLE
        await criu.finish()
        await until(session, SessionState.RUNNING)
        await released(cache, session)
        assert session.attempt is None and not session.failures


async def test_the_list_waits_until_everything_has_come(cache: Cache) -> None:
    """A part of it would end the restore."""
    session = cache.session(SINGLE, complete=False)
    answers: list[list[str]] = []
    done = trio.Event()
    async with serving(cache), trio.open_nursery() as nursery:
        criu = cache.criu("s1")

        @nursery.start_soon
        async def ask() -> None:
            answers.append(await criu.ids())
            done.set()

        await blocked()
        assert not answers and session.attempt is not None
        cache.complete(session)
        await done.wait()
        assert answers == [["s1"]]


async def test_a_restore_may_wait_before_there_is_a_session(cache: Cache) -> None:
    answers: list[list[str]] = []
    done = trio.Event()
    async with serving(cache), trio.open_nursery() as nursery:
        criu = cache.criu("s2")

        @nursery.start_soon
        async def ask() -> None:
            answers.append(await criu.ids())
            done.set()

        await blocked()
        cache.session({"s0": ROUNDS["s0"]}, complete=False)
        await blocked()
        cache.session(SINGLE)
        await blocked()
        assert not answers, "neither has such an id"
        cache.session(ROUNDS)
        await done.wait()
    assert answers == [["s0", "s1", "s2"]]


async def test_one_without_our_script_gets_nothing_before_the_commit(cache: Cache) -> None:
    session = cache.session(SINGLE)
    answers: list[list[str]] = []
    done = trio.Event()
    async with serving(cache), trio.open_nursery() as nursery:
        criu = cache.criu("s1", hooked=False)

        @nursery.start_soon
        async def ask() -> None:
            answers.append(await criu.ids())
            done.set()

        await blocked()
        assert not answers and session.attempt is not None and not session.attempt.hooked
        session.commit()
        await done.wait()
        assert await criu.read("pages-1.img") == SINGLE["s1"]["pages-1.img"]


@VARIANTS
async def test_two_readers_of_one_image_at_once(cache: Cache, variant: str) -> None:
    cache.session(SINGLE, variant)
    async with serving(cache):
        criu = cache.criu("s1", variant)
        await criu.ids()
        streams = [await criu.open_read("pages-1.img") for _ in range(2)]
        data = [b"", b""]
        while not all(len(one) == len(SINGLE["s1"]["pages-1.img"]) for one in data):
            for number, stream in enumerate(streams):
                assert stream is not None
                data[number] += await stream.receive_some(100_000)
        for number, stream in enumerate(streams):
            assert stream is not None and data[number] == SINGLE["s1"]["pages-1.img"]
            assert await stream.receive_some(1) == b""
            await stream.aclose()


@VARIANTS
@pytest.mark.parametrize("size", [0, 10, 70_000])
async def test_a_reader_that_leaves_early_is_no_failure(cache: Cache, variant: str, size: int) -> None:
    session = cache.session(SINGLE, variant)
    async with serving(cache):
        criu = cache.criu("s1", variant)
        await criu.ids()
        for _ in range(5):
            stream = await criu.open_read("pages-1.img")
            assert stream is not None
            if size:
                await stream.receive_some(size)
            await stream.aclose()
        assert await criu.read("pages-1.img") == SINGLE["s1"]["pages-1.img"]
        assert session.attempt is not None and not session.failures


@VARIANTS
async def test_one_that_is_killed_while_it_reads_can_be_followed_by_another(cache: Cache, variant: str) -> None:
    session = cache.session(SINGLE, variant)
    async with serving(cache):
        for times in (1, 2):
            criu = cache.criu("s1", variant)
            await criu.ids()
            stream = await criu.open_read("pages-1.img")
            assert stream is not None
            async with stream:
                await stream.receive_some(10)
                cache.kill()
                await failed(session, times)
                rest = b"".join([part async for part in stream])
                assert 10 + len(rest) < len(SINGLE["s1"]["pages-1.img"])
            assert session.state is SessionState.COMPLETE
        criu = cache.criu("s1", variant)
        assert await criu.ids() == ["s1"]
        assert await read_all(criu, SINGLE) == SINGLE


async def test_one_that_is_killed_while_it_waits_leaves_the_session_to_another(cache: Cache) -> None:
    session = cache.session(SINGLE, complete=False)
    async with serving(cache):
        criu = cache.criu("s1")
        sock = await criu.ask(entry("parent", "", 0))
        await session.changes.wait_until(lambda: session.attempt is not None)
        cache.kill()
        await failed(session, 1)
        assert await hung_up(sock)
        cache.complete(session)
        assert await cache.criu("s1").ids() == ["s1"]


async def test_an_abort_while_it_reads_ends_it_alone(cache: Cache) -> None:
    """It may ask for the next image meanwhile: that is answered by the end of the connection."""
    session = cache.session(SINGLE)
    async with serving(cache):
        criu = cache.criu("s1")
        await criu.ids()
        stream = await criu.open_read("pages-1.img")
        assert stream is not None
        async with stream:
            await stream.receive_some(10)
            session.aborted_by_source("stays there")
            for _ in range(3):
                with pytest.raises(EOFError):
                    await criu.read("core-7.img")
            await failed(session, 1)
        again = cache.session(SINGLE)
        criu = cache.criu("s1")
        assert await criu.ids() == ["s1"]
        assert again.attempt is not None


async def test_a_restore_that_is_served_is_not_taken_by_another(cache: Cache) -> None:
    """The second waits: when the first has failed, it is its turn."""
    session = cache.session(SINGLE)
    answers: list[list[str]] = []
    done = trio.Event()
    async with serving(cache), trio.open_nursery() as nursery:
        await cache.criu("s1").ids()
        first = session.attempt
        assert first is not None
        second = cache.criu("s1")

        @nursery.start_soon
        async def ask() -> None:
            answers.append(await second.ids())
            done.set()

        await blocked()
        assert not answers
        os.kill(first.criu, 9)
        await done.wait()
        assert answers == [["s1"]] and session.attempt is not first


# ---- which session ----


@pytest.mark.parametrize("snapshot", [".", "/var/s7", "s1"])
async def test_one_that_came_by_stream_is_offered_under_the_restores_own_id(cache: Cache, snapshot: str) -> None:
    images = SINGLE["s1"]
    cache.session({"": images}, "")
    async with serving(cache):
        criu = cache.criu(snapshot)
        assert await criu.ids() == [snapshot]
        assert await read_all(criu, {snapshot: images}) == {snapshot: images}
        assert await criu.read("core-7.img", "other") is None


async def test_several_at_once_are_told_apart_by_their_ids(cache: Cache) -> None:
    """Real processes, which read while all of them are at it."""
    cache.be_oneself()
    names = [f"x{number}" for number in range(3)]
    sessions = {name: cache.session({name: {"inventory.img": name.encode() * 1000}}) for name in names}
    async with serving(cache):
        processes = []
        for name in reversed(names):
            words = command("restore", cache.directory, name, "ids", "hold", "read:inventory.img", options=HOOK)
            processes.append(await trio.lowlevel.open_process(words, stdin=-1, stdout=-1))
        for name, process in zip(reversed(names), processes, strict=True):
            attempt = await attempted(sessions[name])
            assert attempt.criu == process.pid
        for process in processes:
            assert process.stdin is not None
            await process.stdin.send_all(b"\n")
        for name, process in zip(reversed(names), processes, strict=True):
            assert process.stdout is not None and process.stdin is not None
            said = b"".join([part async for part in process.stdout]).decode().split()
            digest = hashlib.sha256(name.encode() * 1000).hexdigest()
            assert said == ["ids", name, "holds", "read", "inventory.img", digest]
            assert await process.wait() == 0
            await process.stdout.aclose()
            await process.stdin.aclose()
        for session in sessions.values():
            await failed(session, 1)  # it ended without a word that anything runs


async def test_one_that_waits_for_a_wrong_id_is_told_in_the_log(cache: Cache) -> None:
    session = cache.session(SINGLE, name="mine")
    with structlog.testing.capture_logs() as logs:
        async with serving(cache):
            criu = cache.criu("./s1")
            sock = await criu.ask(entry("parent", "", 0))
            await blocked()
            sock.close()
    (told,) = [line for line in logs if "waits for another id" in line["event"]]
    assert (told["wanted"], told["session"], told["ids"]) == ("./s1", "mine", ["s1"])
    assert session.attempt is None


# ---- variants ----


@VARIANTS
async def test_the_variant_of_the_dump_is_remembered(
    cache: Cache, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_client, "PIPE_GRACE", 1000.0)
    cache.session(SINGLE, variant)
    async with serving(cache):
        criu = cache.criu("s1", variant)
        await criu.ids()
        assert await criu.read("core-7.img") == b"c"


@VARIANTS
async def test_a_variant_that_is_not_known_is_found_out_once(
    cache: Cache, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_client, "PIPE_GRACE", 0.05)
    cache.session({"": SINGLE["s1"]}, "")
    async with serving(cache):
        criu = cache.criu("s1", variant)
        await criu.ids()
        assert await criu.read("core-7.img") == b"c"
        monkeypatch.setattr(remote_client, "PIPE_GRACE", 1000.0)
        assert await criu.read("pages-1.img") == SINGLE["s1"]["pages-1.img"]


# ---- who does wrong, and who cannot be seen ----


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\xff\xff\xff\xff", id="length of 4 GiB"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(entry("../../etc/passwd", "s1", 0), id="name with a path"),
        pytest.param(entry("core-7.img", "s1", 1), id="an image to write"),
        pytest.param(entry("", "", 1), id="the end of a dump"),
    ],
)
async def test_one_that_talks_nonsense_ends_alone(cache: Cache, raw: bytes) -> None:
    cache.session(SINGLE)
    async with serving(cache):
        criu = cache.criu("s1")
        await criu.ids()
        assert await hung_up(await criu.ask(raw))
        assert await criu.read("core-7.img") == b"c"


@pytest.mark.parametrize("raw", [entry("core-7.img", "s1", 0), entry("", "", 0)], ids=["an image", "an end"])
async def test_who_has_not_asked_for_the_list_gets_nothing(cache: Cache, raw: bytes) -> None:
    session = cache.session(SINGLE)
    async with serving(cache):
        criu = cache.criu("s1")
        assert await hung_up(await criu.ask(raw))
        assert await criu.ids() == ["s1"]
        session.commit()
        await criu.finish()
        await until(session, SessionState.RUNNING)
        await released(cache, session)
        assert await hung_up(await criu.ask(raw)), "it is over"


async def test_a_silent_client_holds_nobody_up(cache: Cache) -> None:
    cache.session(SINGLE)
    async with serving(cache):
        criu = cache.criu("s1")
        with criu.connect(b""):
            assert await criu.ids() == ["s1"]
            assert await criu.read("core-7.img") == b"c"


@contextmanager
def nobody() -> Iterator[None]:
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_client_of_another_user_is_refused(cache: Cache) -> None:
    session = cache.session(SINGLE)
    async with serving(cache):
        cache.directory.chmod(0o755)
        (cache.directory / CACHE).chmod(0o666)
        criu = cache.criu("s1")
        with nobody():
            sock = criu.connect(entry("parent", "", 0))
        assert await hung_up(sock)
        assert session.attempt is None


async def test_a_task_that_cannot_be_seen_is_known_by_the_id(cache: Cache) -> None:
    cache.session(SINGLE)
    cache.session({"s2": {"inventory.img": b"2"}})
    async with serving(cache):
        criu = cache.criu("s1")
        await criu.ids()
        cache.hide()
        assert await criu.read("core-7.img") == b"c"
        with pytest.raises(EOFError):
            await criu.read("inventory.img", "s2")


async def test_one_that_cannot_be_seen_is_restored(cache: Cache) -> None:
    session = cache.session(SINGLE)
    session.commit()
    async with serving(cache):
        criu = cache.criu("s1", visible=False)
        assert await criu.ids() == ["s1"]
        assert await read_all(criu, SINGLE) == SINGLE
        await criu.finish()
        await until(session, SessionState.RUNNING)
        await released(cache, session)


async def test_two_that_cannot_be_seen_are_served_at_once(cache: Cache) -> None:
    """Whose end it is that is said cannot be known, so none is taken to run."""
    sessions = [cache.session({name: {"inventory.img": name.encode()}}) for name in ("s1", "s2")]
    for session in sessions:
        session.commit()
    async with serving(cache):
        criu = cache.criu("s1", visible=False)
        assert [await criu.ids(), await criu.ids()] == [["s1"], ["s2"]]
        for name in ("s1", "s2"):
            assert await criu.read("inventory.img", name) == name.encode()
        assert await hung_up(await criu.ask(entry("", "", 0)))
        assert [session.state for session in sessions] == [SessionState.COMMITTED] * 2
        assert await criu.read("inventory.img", "s2") == b"s2"
