"""A session at the destination: what the source says of it, what fails here, what the source is told."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from imgcache.session import Attempt, Session
from imgnode.channel import Channel
from imgnode.journal import journals
from imgnode.nursery import flat_nursery
from imgwire import messages
from imgwire.errors import LocalProtocolError, RemoteProtocolError, UsageError
from imgwire.states import SessionState
from tests.playbook import Collector, complete, connected, open_session, put_image, virtual_time

pytestmark = pytest.mark.t1


@pytest.fixture
async def session(node_dir: Path) -> AsyncIterator[Session]:
    with open_session(node_dir) as made:
        yield made


def journalled(directory: Path) -> list[str]:
    return [record["state"] for journal in journals(str(directory)) for record in journal.records()]


async def test_the_way_of_a_hand_over(session: Session, node_dir: Path) -> None:
    await put_image(session, "inventory.img", b"i")
    complete(session)
    assert not session.in_doubt  # the source waits for `restored`
    session.begin(Attempt(0, hooked=True))
    session.restored(77)
    assert session.in_doubt and session.attempt is not None and session.attempt.init == 77
    session.on_message(messages.Commit())
    assert session.servable and not session.in_doubt
    session.on_message(messages.Commit())  # said twice: nothing more happens
    session.running()
    assert session.over and journalled(node_dir) == ["receiving", "complete", "restored", "committed", "running"]


async def test_a_source_that_waits_for_complete_may_commit_from_then_on(node_dir: Path) -> None:
    with open_session(node_dir, wait_restored=False) as session:
        complete(session)
        assert session.in_doubt
        with pytest.raises(LocalProtocolError, match="in doubt"):
            session.abort("cannot be decided here")
        session.on_message(messages.Commit())
        assert session.state is SessionState.COMMITTED


async def test_a_restore_that_fails_can_be_tried_again(session: Session) -> None:
    complete(session)
    session.begin(Attempt(0, hooked=True))
    session.restored(77)
    session.restore_failed("a reason")
    assert session.state is SessionState.COMPLETE and session.attempt is None and session.failures == 1


async def test_an_unhooked_restore_waits_for_the_commit(session: Session) -> None:
    complete(session)
    session.begin(Attempt(0, hooked=False))
    assert not session.servable
    session.commit()
    assert session.servable


@pytest.mark.parametrize(
    "wrong",
    [
        messages.EndImage(7, 0),
        messages.Patch(7, 0, b"x"),
        messages.ReadBack(1, 7, 0, 1),
        messages.ImagesComplete(5, 5),
        messages.Commit(),
        messages.OpenImage(0, "a.img"),
    ],
    ids=lambda message: type(message).__name__,
)
async def test_what_the_source_does_wrong_aborts_only_its_session(session: Session, wrong: messages.Message) -> None:
    await put_image(session, "a.img", b"a")
    session.on_message(wrong)
    assert session.state is SessionState.ABORTED and session.reason
    session.on_message(messages.ImagesComplete(1, 1))  # what follows is ignored
    assert session.over


async def test_an_abort_of_the_source_s_is_final(session: Session, node_dir: Path) -> None:
    complete(session)
    session.on_message(messages.Abort("stays there"))
    assert (session.state, session.reason) == (SessionState.ABORTED, "stays there")
    session.on_message(messages.Commit())
    assert session.over and journalled(node_dir)[-1] == "aborted"
    session.forget()
    assert journalled(node_dir) == []


async def test_after_the_commit_there_is_no_abort(session: Session) -> None:
    complete(session)
    session.commit()
    with pytest.raises(RemoteProtocolError, match="after it was committed"):
        session.aborted_by_source("too late")
    assert session.state is SessionState.COMMITTED


async def test_a_message_for_a_proxy_is_our_bug(session: Session) -> None:
    with pytest.raises(LocalProtocolError):
        session.on_message(messages.State("x"))


@virtual_time
async def test_a_source_that_stays_away_ends_it(node_dir: Path) -> None:
    with open_session(node_dir) as session:
        started = trio.current_time()
        await session.run(60)
        assert trio.current_time() - started >= 60
        assert session.state is SessionState.ABORTED and "gone for 60 s" in session.reason


@virtual_time
async def test_one_in_doubt_waits_for_its_source(node_dir: Path) -> None:
    with open_session(node_dir, wait_restored=False) as session:
        complete(session)
        with trio.move_on_after(100_000) as scope:
            await session.run(60)
        assert scope.cancelled_caught and session.state is SessionState.COMPLETE


@virtual_time
async def test_the_source_is_told_what_happens(node_dir: Path) -> None:
    proxy, heard = Channel(), Collector()
    with open_session(node_dir) as session:
        async with flat_nursery() as nursery:
            nursery.start_soon(session.run, 60)
            nursery.start_soon(connected, proxy, session.source.channel, heard, session)
            await proxy.send(messages.OpenImage(0, "pages-1.img"))
            await proxy.send_bytes(0, 0, b"abcdef")
            await proxy.send(messages.EndImage(0, 6))
            await proxy.send(messages.ReadBack(1, 0, 2, 3))
            await proxy.send(messages.Patch(0, 0, b"AB"))
            await proxy.send(messages.ImagesComplete(1, 6))
            await session.changes.wait_until(lambda: session.state is SessionState.COMPLETE)
            assert session.store.named("pages-1.img").read(0, 6) == b"ABcdef"
            session.begin(Attempt(0, hooked=True))
            session.restore_failed("no luck")
            await trio.testing.wait_all_tasks_blocked()  # what it has to say is on its way
            await proxy.drain()
            await session.source.channel.drain()
            nursery.cancel_scope.cancel()
    proxy.close()
    assert heard.messages == [
        messages.Reply(1, b"cde"),
        messages.State("complete", "none"),
        messages.State("restore-ready", "hooked"),
        messages.State("restore-failed", "no luck"),
    ]


async def test_another_source_may_take_over_while_memory_follows(session: Session) -> None:
    with pytest.raises(UsageError, match=r"no memory follows: session .* is receiving"):
        await session.take_over()
    session.on_message(messages.MemoryFollows(9))
    complete(session)
    session.begin(Attempt(0, hooked=True))
    session.restored(os.getpid())
    with pytest.raises(UsageError, match="is restored"):
        await session.take_over()
    session.on_message(messages.Commit())
    session.running()
    before = session.source.channel
    await session.take_over()
    assert session.source.channel is not before
    assert session.source.channel.received == 0
    session.whole()
    with pytest.raises(UsageError, match="is running"):
        await session.take_over()
