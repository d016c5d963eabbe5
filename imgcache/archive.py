"""An archive file: one session's link, frame by frame, in a file. Written by `imgproxy --to file:`, read here.

Image bytes that are stored plain are not read at all: the images' extents lie in the archive itself, so a checkpoint
of any size is served from it without memory, any number of times.
"""

import os
import secrets
from pathlib import Path

import trio

from imgcache.arena import Extent
from imgcache.session import Session
from imgnode.channel import Payload
from imgnode.transport import Transport
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.frames import Header
from imgwire.link import ByeReceived, DataStarted, GreetingReceived, LinkConnection, MessageReceived, Role
from imgwire.messages import Hello
from imgwire.states import SessionState

#: What to do about an archive that is not as it was written.
_CURE = "copy it again from where it was parked"


class _FileTransport(Transport):
    """Reads an archive; its position is where the next frame is."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.offset = 0

    async def send_all(self, data: bytes | memoryview, *, more: bool = False) -> None:
        raise trio.BrokenResourceError("an archive takes nothing")

    async def receive_some(self, size: int) -> bytes:
        await trio.lowlevel.checkpoint()
        data = os.pread(self.fd, size, self.offset)
        self.offset += len(data)
        return data

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class Archive:
    """An archive that is open for reading. `path` is only for messages."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._transport = _FileTransport(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        except OSError as error:
            raise UsageError(f"archive {path}: {error.strerror}") from error
        self._size = os.fstat(self._transport.fd).st_size

    async def hello(self) -> Hello:
        """What the proxy said of the session, with a new id: each load is a session of its own."""
        self._transport.offset = 0
        self._connection = LinkConnection(Role.CACHE)
        event = (await self._events())[0]
        if not isinstance(event, GreetingReceived) or not isinstance(event.greeting, Hello):
            raise UsageError(f"archive {self.path}: does not begin with a session")
        hello = event.greeting
        return Hello(secrets.token_hex(16), hello.name, facts=hello.facts, need=hello.need)

    async def load(self, session: Session) -> None:
        """Fill `session` and commit it: a parked process has no other copy that could run."""
        try:
            while not session.over and not await self._load_some(session):
                pass
        except (RemoteProtocolError, trio.BrokenResourceError) as error:
            raise self._damaged(error) from error
        if session.over:
            raise UsageError(f"archive {self.path}: {session.reason}")
        session.commit()

    async def _load_some(self, session: Session) -> bool:
        """Take what comes next; whether that was the last frame: without it the archive has been cut short."""
        for event in await self._events():
            match event:
                case DataStarted(header):
                    await self._data(session, header)
                case MessageReceived(_, message):
                    session.on_message(message)
                case ByeReceived():
                    if session.state is SessionState.RECEIVING:
                        raise UsageError(f"archive {self.path}: ends before its images are complete; {_CURE}")
                    return True
        return False

    def _damaged(self, error: Exception) -> UsageError:
        return UsageError(f"archive {self.path}: damaged or cut at byte {self._transport.offset}: {error}; {_CURE}")

    def close(self) -> None:
        """Close the file."""
        os.close(self._transport.fd)

    async def _events(self) -> list[object]:
        try:
            while True:
                data = await self._transport.receive_some(self._connection.wanted)
                if not data:
                    raise RemoteProtocolError("the file ends here, before its last frame")
                if events := self._connection.receive_data(data):
                    return list(events)
        except RemoteProtocolError as error:
            raise self._damaged(error) from error

    async def _data(self, session: Session, header: Header) -> None:
        payload = Payload(self._transport, self._connection, header)
        if header.compressed or session.store.numbered(header.image).digested:
            await session.on_data(payload)
            return
        if self._transport.offset + header.length > self._size:
            raise UsageError(f"archive {self.path}: cut inside image {header.image}; {_CURE}")
        session.store.adopt(header, Extent(self._transport.fd, self._transport.offset, header.length))
        self._transport.offset += header.length
        self._connection.payload_bypassed(header.length)
