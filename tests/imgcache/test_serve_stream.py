"""`criu restore --stream` at the cache: what it gets, when, and what becomes of one that misbehaves."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from imgcache.leftovers import Leftovers
from imgcache.serve.stream import serve_restore
from imgcache.session import Session
from imgnode import proc
from imgnode.nursery import flat_nursery
from imgnode.unix import listening
from imgwire.states import SessionState
from tests.fake_criu import FakeRestore, connect_restore, request
from tests.playbook import complete, open_session, put_image, random_bytes

pytestmark = pytest.mark.t1

PAGES = random_bytes(3_000_000)
SMALL = random_bytes(1000)


class Served:
    """A session that is being served to one CRIU."""

    def __init__(self, session: Session, criu: FakeRestore, ended: trio.Event) -> None:
        self.session, self.criu, self.ended = session, criu, ended


@asynccontextmanager
async def served(session: Session, path: Path, *, hooked: bool = True, release: bool = False) -> AsyncIterator[Served]:
    """One attempt to restore, of a CRIU that cannot be seen (as in another pid namespace); over at the end."""
    ended = trio.Event()
    async with listening(path) as listener, flat_nursery() as nursery:
        criu = await connect_restore(path)
        sock, _ = await listener.accept()

        @nursery.start_soon
        async def serve() -> None:
            await serve_restore(sock, session, criu=0, hooked=hooked, release_as_read=release)
            ended.set()

        try:
            await trio.testing.wait_all_tasks_blocked()
            yield Served(session, criu, ended)
        finally:
            criu.close()
        await ended.wait()


async def fill(session: Session) -> None:
    await put_image(session, "inventory.img", SMALL)
    await put_image(session, "pages-1.img", PAGES)
    await put_image(session, "pages-2.img", b"")


@pytest.fixture
async def session(node_dir: Path) -> AsyncIterator[Session]:
    with open_session(node_dir) as made:
        await fill(made)
        yield made


async def test_images_are_what_came_in(session: Session, node_dir: Path) -> None:
    complete(session)
    async with served(session, node_dir / "s") as at:
        assert await at.criu.image("inventory.img") == SMALL
        assert await at.criu.image("tty-info.img") is None
        assert await at.criu.image("pages-2.img") == b""
        assert await at.criu.image("pages-1.img") == PAGES
        assert session.attempt is not None and session.attempt.hooked
    assert session.attempt is None and session.failures == 1  # it ended without a word that anything runs


async def test_several_images_are_read_at_once(session: Session, node_dir: Path) -> None:
    for number in range(3, 8):
        await put_image(session, f"pages-{number}.img", PAGES[number:])
    complete(session)
    async with served(session, node_dir / "s") as at:
        pipes = [await at.criu.open(f"pages-{number}.img") for number in range(3, 8)]
        for number, pipe in reversed(list(enumerate(pipes, 3))):  # the last one first: each has its own task
            assert pipe is not None
            async with pipe:
                assert b"".join([part async for part in pipe]) == PAGES[number:]


async def test_nothing_is_answered_before_the_set_is_complete(session: Session, node_dir: Path) -> None:
    async with served(session, node_dir / "s") as at:
        answers: list[bytes | None] = []

        async def ask() -> None:
            answers.append(await at.criu.image("inventory.img"))
            answers.append(await at.criu.image("absent.img"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert not answers
            complete(session)
        assert answers == [SMALL, None]


async def test_one_without_our_script_gets_nothing_before_the_commit(session: Session, node_dir: Path) -> None:
    complete(session)
    async with served(session, node_dir / "s", hooked=False) as at:
        answers: list[bytes | None] = []

        async def ask() -> None:
            answers.append(await at.criu.image("inventory.img"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked()
            assert not answers
            session.commit()
        assert answers == [SMALL]


@pytest.mark.parametrize("hooked", [True, False])
async def test_one_that_goes_on_before_its_answer_gets_nothing(session: Session, node_dir: Path, hooked: bool) -> None:
    if not hooked:
        complete(session)
    async with served(session, node_dir / "s", hooked=hooked) as at:
        await at.criu.send(request("inventory.img") + request("pages-1.img"))
        assert await at.criu.hung_up()
    assert session.failures == 1 and not session.over


async def test_a_pipe_that_is_closed_early_is_no_failure(session: Session, node_dir: Path) -> None:
    complete(session)
    async with served(session, node_dir / "s") as at:
        pipe = await at.criu.open("pages-1.img")
        assert pipe is not None
        assert await pipe.receive_some(10) == PAGES[:10]
        await pipe.aclose()
        assert await at.criu.image("pages-1.img") == PAGES


async def test_it_can_be_served_again(session: Session, node_dir: Path) -> None:
    complete(session)
    for failures in (1, 2, 3):
        async with served(session, node_dir / "s") as at:
            assert await at.criu.image("pages-1.img") == PAGES
        assert session.failures == failures and session.state is SessionState.COMPLETE


async def test_what_was_given_back_is_refused_a_second_time(session: Session, node_dir: Path) -> None:
    complete(session)
    before = session.store.arena.memory_bytes
    async with served(session, node_dir / "s", release=True) as at:
        assert await at.criu.image("pages-1.img") == PAGES
        await trio.testing.wait_all_tasks_blocked()
        assert session.store.arena.memory_bytes < before - len(PAGES) + 8192
    async with served(session, node_dir / "s", release=True) as at:
        assert await at.criu.image("inventory.img") == SMALL
        with pytest.raises((EOFError, ConnectionResetError)):
            await at.criu.image("pages-1.img")


async def test_an_abort_ends_it(session: Session, node_dir: Path) -> None:
    async with served(session, node_dir / "s") as at:
        await at.criu.send(request("inventory.img"))
        session.aborted_by_source("stays there")
        assert await at.criu.hung_up()
        await at.ended.wait()


async def test_an_abort_ends_it_while_an_image_is_fed(session: Session, node_dir: Path) -> None:
    complete(session)
    async with served(session, node_dir / "s") as at:
        pipe = await at.criu.open("pages-1.img")
        assert pipe is not None
        await pipe.receive_some(10)
        session.aborted_by_source("stays there")
        assert await at.criu.hung_up()
        async with pipe:
            assert 10 + len(b"".join([part async for part in pipe])) < len(PAGES)


@pytest.mark.parametrize(
    ("raw", "fds"),
    [
        pytest.param(b"\xff\xff\xff\xff", 0, id="length of 4 GiB"),
        pytest.param(b"\x00\x00\x00\x00", 0, id="length of nothing"),
        pytest.param(request("../../etc/passwd"), 0, id="name with a path"),
        pytest.param(request(".."), 0, id="parent"),
        pytest.param(request(b"a\0b"), 0, id="name with NUL"),
        pytest.param(request("x" * 300), 0, id="long name"),
        pytest.param(request("inventory.img"), 1, id="descriptor with a request"),
        pytest.param(request("inventory.img"), 20, id="too many descriptors"),
    ],
)
async def test_one_that_talks_nonsense_ends_alone(session: Session, node_dir: Path, raw: bytes, fds: int) -> None:
    complete(session)
    async with served(session, node_dir / "s") as at:
        await at.criu.send(raw, *[at.criu.sock.fileno()] * fds)
        assert await at.criu.hung_up()
    async with served(session, node_dir / "s") as at:
        assert await at.criu.image("pages-1.img") == PAGES


@pytest.mark.parametrize("fds", ["none", "two", "no pipe"])
async def test_a_pipe_that_is_none_ends_it_alone(session: Session, node_dir: Path, fds: str) -> None:
    complete(session)
    async with served(session, node_dir / "s") as at:
        await at.criu.send(request("pages-1.img"))
        assert len(await at.criu.sock.recv(6)) == 6
        with (node_dir / "file").open("wb") as file:
            passed = {"none": [], "two": [at.criu.sock.fileno()] * 2, "no pipe": [file.fileno()]}[fds]
            await at.criu.send(b"\0", *passed)
        assert await at.criu.hung_up()
    assert session.failures == 1 and not session.over


async def test_one_that_is_killed_is_cleared_away_and_another_may_come(session: Session, node_dir: Path) -> None:
    complete(session)
    command = [sys.executable, "-m", "tests.fake_criu", "restore", str(node_dir / "s"), "pages-1.img", "inventory.img"]
    async with listening(node_dir / "s") as listener:
        async with trio.open_nursery() as nursery:
            criu = await trio.lowlevel.open_process(command, stdout=-1)
            sock, _ = await listener.accept()

            @nursery.start_soon
            async def serve() -> None:
                await serve_restore(sock, session, criu=criu.pid, hooked=True)

            assert criu.stdout is not None
            assert await criu.stdout.receive_some(4) == b"half"
            assert session.attempt is not None and session.attempt.criu == criu.pid
            criu.kill()
            await criu.wait()
            await criu.stdout.aclose()
        assert session.failures == 1 and session.state is SessionState.COMPLETE
    async with served(session, node_dir / "s") as at:
        assert await at.criu.image("pages-1.img") == PAGES


async def test_tasks_of_one_that_is_killed_are_cleared_away_after_they_have_closed_its_socket(
    session: Session, node_dir: Path
) -> None:
    complete(session)
    command = [sys.executable, "-m", "tests.fake_criu", "tree", str(node_dir / "s"), "pages-1.img"]
    async with listening(node_dir / "s") as listener, trio.open_nursery() as nursery:
        criu = await trio.lowlevel.open_process(command, stdout=-1)
        sock, _ = await listener.accept()
        nursery.start_soon(lambda: serve_restore(sock, session, criu=criu.pid, hooked=True))
        assert criu.stdout is not None
        task = proc.identify(int(await criu.stdout.receive_some(20)))
        assert proc.is_alive(task)
        criu.kill()
        await criu.wait()
        await criu.stdout.aclose()
    assert not proc.is_alive(task)
    assert session.failures == 1


async def test_one_that_is_left_by_the_session_is_killed(
    session: Session, node_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A restore of a session that is aborted gets nothing more; one that will not end is ended."""
    monkeypatch.setattr(Leftovers, "PATIENCE", 0.2)
    complete(session)
    command = [sys.executable, "-m", "tests.fake_criu", "restore", str(node_dir / "s"), "pages-1.img"]
    async with listening(node_dir / "s") as listener, trio.open_nursery() as nursery:
        criu = await trio.lowlevel.open_process(command, stdout=-1)
        sock, _ = await listener.accept()
        nursery.start_soon(lambda: serve_restore(sock, session, criu=criu.pid, hooked=True))
        assert criu.stdout is not None
        assert await criu.stdout.receive_some(4) == b"half"
        session.aborted_by_source("stays there")
        assert await criu.wait() == -9
        await criu.stdout.aclose()
