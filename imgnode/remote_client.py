"""The original `criu --remote` at the other end of a local socket: what it asks for, and where its image is.

Both programs have such a client: the proxy one that dumps, the cache one that restores. The protocol itself is
`imgwire.img_remote`; here are the socket, the descriptors that come with it, and the one thing that only time tells:
whether a client that reads an image passes a pipe or waits for the bytes on the socket.
"""

import os

import trio

from imgnode.pipes import write_all
from imgnode.unix import close_all, peer_credentials, receive_with_fds
from imgwire.errors import RemoteProtocolError
from imgwire.img_remote import BodyBegun, LocalConnection, LocalEvent, PipePassed

#: Seconds for a client that has connected to say what it wants. The original one says it at once.
REQUEST_TIMEOUT = 10.0
#: Seconds for a client that reads to pass its pipe, where nothing is known of it: one that does, does it at once. Who
#: is known to pass one has REQUEST_TIMEOUT: bytes on the socket would be lost, and an empty image taken for the truth.
PIPE_GRACE = 1.0


class RemoteClient:
    """One connection."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self.peer = peer_credentials(sock)
        self._protocol = LocalConnection()

    async def request(self) -> LocalEvent | None:
        """What it wants; None if it left without a word. RemoteProtocolError, also if it stays silent."""
        with trio.move_on_after(REQUEST_TIMEOUT):
            event, _fds = await self._receive()
            return event
        raise RemoteProtocolError(f"a local client has said nothing for {REQUEST_TIMEOUT:.0f} s")

    async def body(self) -> int | bytes:
        """Where the image that it writes is: a pipe, now the caller's; or the socket, beginning with these bytes."""
        event, fds = await self._receive()
        if isinstance(event, PipePassed):
            return fds[0]
        assert isinstance(event, BodyBegun)  # whatever comes is its begin, and so is the end of an empty image
        return event.data

    async def say_missing(self) -> None:
        """The image that it wants does not exist."""
        await self.send(self._protocol.answer(exists=False))

    async def say_snapshots(self, ids: list[str]) -> None:
        """All snapshot ids, oldest first."""
        await self.send(self._protocol.answer_snapshots(ids))

    async def target(self, variant: str) -> int | None:
        """Say that the image exists; where to put it: a pipe, now the caller's, or None, the socket.

        `variant` is what is known of the client: `pipe`, `nopipe` or "". Raises BrokenPipeError if it has gone.
        """
        await self.send(self._protocol.answer(exists=True))
        if variant == "nopipe":
            return None
        grace = REQUEST_TIMEOUT if variant == "pipe" else PIPE_GRACE
        with trio.move_on_after(grace):
            event, fds = await self._receive()
            if not isinstance(event, PipePassed):
                raise BrokenPipeError("the client left before its image")
            return fds[0]
        if variant == "pipe":
            raise RemoteProtocolError(f"criu has passed no pipe for {grace:.0f} s; earlier ones came")
        return None

    async def send(self, data: bytes) -> None:
        """Send all of `data` on the socket. BrokenPipeError if the client has gone."""
        view = memoryview(data)
        try:
            while view:
                view = view[await self.sock.send(view) :]
        except ConnectionResetError as error:
            raise BrokenPipeError("the client has gone") from error

    async def _receive(self) -> tuple[LocalEvent | None, list[int]]:
        while True:
            try:
                data, fds = await receive_with_fds(self.sock, self._protocol.wanted)
            except ConnectionResetError:
                data, fds = b"", []
            try:
                events = self._protocol.receive_data(data, len(fds)) if data else self._protocol.receive_eof()
            except RemoteProtocolError:
                close_all(fds)
                raise
            if events or not data:
                return (events[0] if events else None), fds


async def put(client: RemoteClient, pipe: int | None, data: bytes) -> None:
    """Write `data` where `target` said. BrokenPipeError if the client has gone: that is its right."""
    if pipe is None:
        await client.send(data)
    else:
        os.set_blocking(pipe, False)
        await write_all(pipe, data)
