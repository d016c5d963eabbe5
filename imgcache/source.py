"""A session's line to its source: what is to be said there, and the connection that carries it while there is one.

What is said waits here until a connection takes it, so nothing is lost by a cut: the channel sends again what the other
end has not received. A newer connection takes over from an older one, of which the source may know sooner than we do.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable

import trio

from imgnode.channel import Channel
from imgnode.signalling import Changes
from imgwire import messages
from imgwire.errors import RemoteProtocolError

#: Answers that may wait for the link: the proxy asks one thing at a time.
MAX_OUTBOX = 256


class Source:
    """See the module's text. `changes` tells when it comes and goes, and when there is something to say."""

    def __init__(self, changes: Changes) -> None:
        self.channel = Channel()
        self.said_goodbye = False
        self._changes = changes
        self._outbox: deque[messages.ToProxy] = deque()
        self._connection: trio.CancelScope | None = None
        self._sending = trio.CancelScope()  # the outbox to this channel

    @property
    def attached(self) -> bool:
        """Whether a connection to the proxy is in use."""
        return self._connection is not None

    def say(self, message: messages.ToProxy) -> None:
        """Say it as soon as there is a connection. RemoteProtocolError if too much waits already."""
        if len(self._outbox) >= MAX_OUTBOX:
            raise RemoteProtocolError("the proxy asks faster than it listens")
        self.ask(message)

    def ask(self, message: messages.ToProxy) -> None:
        """Say it, however much waits: for what is wanted of the source, as long as a cut may last."""
        self._outbox.append(message)
        self._changes.notify()

    async def carry(self, run: Callable[[], Awaitable[bool]]) -> None:
        """The source is there while `run` receives from it, which returns whether it said goodbye."""
        await self.detach()
        with trio.CancelScope() as scope:
            self._connection = scope
            self._changes.notify()
            try:
                self.said_goodbye = await run()
            finally:
                self._connection = None
                self._changes.notify()

    async def detach(self) -> None:
        """End the connection that is in use, if there is one."""
        if self._connection is not None:
            self._connection.cancel()
            await self._changes.wait_until(lambda: self._connection is None)

    def begin_anew(self, said: Iterable[messages.ToProxy]) -> None:
        """Another proxy, which has heard nothing yet, goes on in place of the first: `said` is what it must know."""
        self._sending.cancel()
        self.channel.close()
        self.channel = Channel()
        self._outbox = deque(said)
        self._changes.notify()

    async def send_outbox(self) -> None:
        """Send what is said, for ever."""
        while True:
            with trio.CancelScope() as self._sending:
                while True:
                    await self._changes.wait_until(lambda: bool(self._outbox))
                    await self.channel.send(self._outbox.popleft())

    def close(self) -> None:
        """Give back what the channel holds."""
        self.channel.close()
