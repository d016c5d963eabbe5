"""The first two frames of a connection: who we are, whether the session is taken, where to go on after a cut."""

from typing import TypeVar

import trio

from imgnode.transport import Transport
from imgwire.errors import RemoteProtocolError
from imgwire.link import GreetingReceived, LinkConnection, Role
from imgwire.messages import Greeting, Hello, Refused, Resolve, Resolved, Welcome

#: A peer that has connected says who it is within this many seconds; TLS handshakes are included.
GREETING_TIMEOUT = 10.0

_Answer = TypeVar("_Answer", Welcome, Resolved)


class SessionRefused(Exception):
    """The cache does not take the session. `final`: trying again is pointless."""

    def __init__(self, reason: str, *, final: bool) -> None:
        super().__init__(reason)
        self.final = final


async def open_session(transport: Transport, hello: Hello) -> tuple[LinkConnection, Welcome]:
    """Introduce the proxy; return the connection, open, and the cache's answer. SessionRefused, RemoteProtocolError."""
    connection = LinkConnection(Role.PROXY)
    welcome = await _ask(transport, connection, hello, Welcome)
    if not hello.oldest <= welcome.version <= hello.version:
        raise RemoteProtocolError(
            f"the cache speaks link version {welcome.version} where {hello.oldest} to {hello.version} were offered"
        )
    return connection, welcome


async def resolve_session(transport: Transport, resolve: Resolve) -> str:
    """Tell the cache how a session ended at the source; return the state that it is in there now."""
    return (await _ask(transport, LinkConnection(Role.PROXY), resolve, Resolved)).state


async def receive_greeting(transport: Transport, connection: LinkConnection) -> Greeting:
    """The other side's greeting. TooSlowError after GREETING_TIMEOUT."""
    with trio.fail_after(GREETING_TIMEOUT):
        while True:
            data = await transport.receive_some(connection.wanted)
            if not data:
                connection.receive_eof()
                raise trio.BrokenResourceError("the other side closed the connection without a greeting")
            for event in connection.receive_data(data):
                if isinstance(event, GreetingReceived):
                    return event.greeting


async def _ask(
    transport: Transport, connection: LinkConnection, greeting: Hello | Resolve, answer: type[_Answer]
) -> _Answer:
    await transport.send_all(connection.greet(greeting))
    reply = await receive_greeting(transport, connection)
    if isinstance(reply, Refused):
        raise SessionRefused(reply.reason, final=reply.final)
    if not isinstance(reply, answer):
        raise RemoteProtocolError(f"{type(reply).__name__} in answer to {type(greeting).__name__}")
    return reply
