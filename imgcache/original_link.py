"""The destination's end of the original wire: `imgcache --wire criu`, which original image-proxies connect to.

That stream goes one way and greets nobody, so each connection becomes a session of its own, from its first byte on. The
ids of its images, in order of appearance, are its rounds. Page payload is spliced into the store like the link's, a
piece at a time. The end of the stream is the only word on the outcome: after the last image of a dump the set is
complete, and committed, as the source has nothing more to say; anywhere else the session is aborted.

An image that comes twice aborts its session: which of both belongs to the rest cannot be known (the first may be of a
dump that failed and left its process running), and the original cache does not take it either.
"""

import math
import secrets
import socket

import structlog
import trio

from imgcache.host import Host
from imgcache.link_server import open_session
from imgcache.registry import Registry
from imgcache.session import Session
from imgnode.channel import Payload
from imgnode.greeting import GREETING_TIMEOUT
from imgnode.transport import SocketTransport, Transport
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.frames import MAX_DATA, FrameType, Header
from imgwire.img_remote_stream import ImageBegun, RemoteStream
from imgwire.messages import BeginRound, EndImage, Hello, ImagesComplete, OpenImage
from imgwire.names import LAST_IMAGE, is_of_pre_dump

#: An image that every dump has, and no pre-dump.
DUMP_IMAGE = "pstree.img"
#: Connections on which nothing has come yet. An image-proxy says nothing until its dump begins, for hours perhaps.
MAX_SILENT = 64
#: Seconds of silence before the kernel asks whether a source is still there, and between three more attempts.
KEEPALIVE_IDLE, KEEPALIVE_PAUSE = 20, 5

_log = structlog.get_logger()


class OriginalLink:
    """Serves connections of original image-proxies."""

    def __init__(self, registry: Registry, host: Host, nursery: trio.Nursery) -> None:
        self._registry, self._host, self._nursery = registry, host, nursery
        self._silent = 0
        self.stopping = False

    async def serve(self, transport: Transport) -> None:
        """Serve one connection until it ends. What the other side does wrong ends only its own session."""
        try:
            await self._serve(transport)
        except (RemoteProtocolError, UsageError) as error:
            _log.warning("an image-proxy is not served", error=str(error))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _log.debug("a connection broke", error=str(error))
        finally:
            with trio.CancelScope(shield=True):
                await transport.aclose()

    async def _serve(self, transport: Transport) -> None:
        if isinstance(transport, SocketTransport) and transport.sock.family != socket.AF_UNIX:
            _keep_alive(transport.sock)
        stream = RemoteStream()
        first = await self._first_bytes(transport, stream.wanted)
        if not first:
            return
        if self.stopping:
            raise UsageError("the cache is stopping")
        identity = secrets.token_hex(16)
        hello = Hello(identity, f"remote-{identity[:8]}")
        session = await open_session(hello, self._registry, self._host, self._nursery)
        arrival = Arrival(transport, stream, session, first)
        await session.source.carry(arrival.receive)

    async def _first_bytes(self, transport: Transport, size: int) -> bytes:
        if self._silent >= MAX_SILENT:
            raise UsageError(f"{MAX_SILENT} connections wait for their first image; no more are taken")
        self._silent += 1
        try:
            return await transport.receive_some(size)
        finally:
            self._silent -= 1


class Arrival:
    """The images of one connection on their way into one session. `first`: what has been read of the stream."""

    def __init__(self, transport: Transport, stream: RemoteStream, session: Session, first: bytes) -> None:
        self._transport, self._stream, self._session, self._first = transport, stream, session, first
        self._rounds: dict[str, int] = {}
        self._images = 0
        self._piece = 0  # bytes due of what the store takes at a time

    @property
    def payload_left(self) -> int:
        """Bytes of the present piece that have not come."""
        return self._piece

    def payload_bypassed(self, size: int) -> None:
        """They went into the store."""
        self._piece -= size
        self._stream.body_bypassed(size)

    async def receive(self) -> bool:
        """Fill the session until the stream ends, and say how it ended. Always true: no other connection follows."""
        session = self._session
        try:
            data = self._first
            while data and not session.over:
                await self._take(data)
                data = b"" if session.over else await self._header()
            if not session.over:
                self._stream.receive_eof()
                self._finish()
        except RemoteProtocolError as error:
            self._abort(str(error))
        except trio.TooSlowError:
            self._abort(f"the image-proxy stopped for {GREETING_TIMEOUT:.0f} s in the middle of a header")
        except trio.BrokenResourceError as error:
            self._abort(f"the connection to the image-proxy broke: {error}")
        return True

    async def _header(self) -> bytes:
        """The next bytes of a header. Between two images a source may rest."""
        with trio.fail_after(math.inf if self._stream.between_images else GREETING_TIMEOUT):
            return await self._transport.receive_some(self._stream.wanted)

    async def _take(self, data: bytes) -> None:
        for event in self._stream.receive_data(data):
            if isinstance(event, ImageBegun):
                await self._image(event)

    async def _image(self, image: ImageBegun) -> None:
        session, number = self._session, self._images
        self._images += 1
        if image.snapshot not in self._rounds:
            self._rounds[image.snapshot] = len(self._rounds) + 1
            session.on_message(BeginRound(self._rounds[image.snapshot], image.snapshot))
        session.on_message(OpenImage(number, image.name, round=self._rounds[image.snapshot]))
        for offset in range(0, image.size, MAX_DATA):
            if session.over:
                return
            await self._bytes(image, number, offset)
        session.on_message(EndImage(number, image.size))

    async def _bytes(self, image: ImageBegun, number: int, offset: int) -> None:
        self._piece = min(MAX_DATA, image.size - offset)
        header = Header(FrameType.DATA, self._piece, 1, 0, number, offset, self._piece)
        try:
            await self._session.on_data(Payload(self._transport, self, header))
        except trio.BrokenResourceError as error:
            come = image.size - self._stream.body_left
            raise RemoteProtocolError(
                f"{image.name} of {image.snapshot}: the connection ended after {come} of its {image.size} bytes"
            ) from error

    def _finish(self) -> None:
        """The stream has ended between two images."""
        session = self._session
        if reason := self._missing():
            self._abort(reason)
            return
        images = sum(len(one.images) for one in session.store.rounds)
        session.on_message(ImagesComplete(images, session.store.size))
        if not session.over:
            session.commit()

    def _missing(self) -> str:
        """Why this is no dump that ended well; "" if it is one."""
        rounds = self._session.store.rounds
        if not rounds:
            return "the image-proxy left without an image"
        images, snapshot = rounds[-1].images, rounds[-1].snapshot
        if all(is_of_pre_dump(name) for name in images) and LAST_IMAGE in images:
            return f"the stream ends after the pre-dump {snapshot}: the dump has not come"
        missing = [name for name in (DUMP_IMAGE, LAST_IMAGE) if name not in images]
        return f"the stream ends without {missing[0]} of {snapshot}: the dump has failed" if missing else ""

    def _abort(self, reason: str) -> None:
        if not self._session.over:
            self._session.abort(reason)


def _keep_alive(sock: trio.socket.SocketType) -> None:
    """A source that rests sends nothing: let the kernel find out if its machine is gone."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_PAUSE)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
