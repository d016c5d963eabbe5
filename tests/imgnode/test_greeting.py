"""The first two frames: what each side makes of the other's."""

import pytest
import trio

from imgnode.greeting import GREETING_TIMEOUT, SessionRefused, open_session, receive_greeting, resolve_session
from imgnode.transport import SocketTransport
from imgwire.errors import RemoteProtocolError
from imgwire.link import ConnectionState, LinkConnection, Role
from imgwire.messages import Greeting, Hello, Refused, Resolve, Resolved, Welcome
from tests.imgwire.conversations import ack, hello_frame
from tests.playbook import IDENTITY, socket_pair, virtual_time

pytestmark = pytest.mark.t1

HELLO = Hello(IDENTITY, "web-1")


async def open_against(answer: bytes) -> tuple[LinkConnection, Welcome]:
    """Open a session at a cache that says `answer` and nothing more."""
    sock, theirs = trio.socket.socketpair()
    with theirs:
        ours = SocketTransport(sock)
        await theirs.send(answer)
        theirs.shutdown(trio.socket.SHUT_WR)
        try:
            return await open_session(ours, HELLO)
        finally:
            await ours.aclose()


async def test_a_welcome_opens_the_session() -> None:
    connection, welcome = await open_against(hello_frame(Welcome(1, received=3, window=9, facts={"cpus": 2})))
    assert welcome == Welcome(1, received=3, window=9, facts={"cpus": 2})
    assert connection.state is ConnectionState.OPEN


async def test_a_refusal_is_told_with_its_reason() -> None:
    with pytest.raises(SessionRefused, match="the disk is full") as caught:
        await open_against(hello_frame(Refused("the disk is full", final=False)))
    assert not caught.value.final


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (hello_frame(Welcome(2)), "speaks link version 2 where 1 to 1 were offered"),
        (hello_frame(Welcome(0)), "speaks link version 0"),
        (hello_frame(Resolved("running")), "Resolved in answer to Hello"),
        (hello_frame(HELLO), "Hello is not theirs"),
        (ack(0), "ACK frame while greeting"),
        (b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "no frame header"),
    ],
    ids=["newer version", "older version", "another answer", "a proxy", "an open link", "another protocol"],
)
async def test_an_answer_that_is_none_is_refused(answer: bytes, reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        await open_against(answer)


async def test_hanging_up_is_told_from_breaking_off() -> None:
    with pytest.raises(trio.BrokenResourceError, match="without a greeting"):
        await open_against(b"")
    with pytest.raises(RemoteProtocolError, match="middle of a frame"):
        await open_against(hello_frame(Welcome(1))[:-1])


@virtual_time
async def test_a_silent_peer_is_not_waited_for() -> None:
    ours, theirs = socket_pair()
    await theirs.send_all(hello_frame(HELLO)[:40])
    started = trio.current_time()
    with pytest.raises(trio.TooSlowError):
        await receive_greeting(ours, LinkConnection(Role.CACHE))
    assert trio.current_time() - started == pytest.approx(GREETING_TIMEOUT)
    await ours.aclose()
    await theirs.aclose()


@pytest.mark.parametrize("greeting", [HELLO, Resolve(IDENTITY, commit=True)])
async def test_a_cache_hears_who_it_is(greeting: Greeting) -> None:
    ours, theirs = socket_pair()
    await theirs.send_all(hello_frame(greeting) + ack(0))  # what follows stays on the connection
    assert await receive_greeting(ours, LinkConnection(Role.CACHE)) == greeting
    assert await ours.receive_some(100) == ack(0)
    await ours.aclose()
    await theirs.aclose()


async def test_a_word_on_how_it_ended_is_answered_with_the_state() -> None:
    ours, theirs = socket_pair()
    await theirs.send_all(hello_frame(Resolved("running")))
    assert await resolve_session(ours, Resolve(IDENTITY, commit=True)) == "running"
    await ours.aclose()
    await theirs.aclose()
