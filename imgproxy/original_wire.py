"""The stream of the original image-proxy to an original image-cache: `imgproxy --wire criu`.

Header and body, one image after the other, then the end; nothing comes back. A header says how long its image is, so
each image is collected in memory first (of which the kernel, not this program, holds the pages), sent from there, and
forgotten. What that wire or its receiver cannot take is refused by name, and the dump fails:

* images of 2 GiB and more, and empty ones, which stop the original cache;
* an image that comes twice in one snapshot, and a round that is taken back once some of it was sent: it stays there.

The list of snapshot ids goes out once, whole, as soon as the dump itself has begun. The original cache takes each list
for the only one, so a restore that waits there must not see one that lacks the dump; and as our own cache counts what
it has of the list, a second one would not be understood.

The original cache reads a header with two calls that must find all of it. So each leaves as a segment of its own: it is
written, by one call, only when nothing unsent lies before it.

Source: recordings of the original proxy, and the original cache (CRIU 3.14) tried with each of these.
"""

import fcntl
import os
import socket
import struct
import termios
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from imgnode.pipes import splice_to_file
from imgnode.transport import SocketTransport
from imgproxy.dialer import Dialer
from imgproxy.outgoing import readable_size, write_at_end
from imgproxy.source import LinkLost
from imgwire import messages
from imgwire.errors import LocalProtocolError
from imgwire.frames import MAX_DATA
from imgwire.img_remote_messages import PARENT, OpenMode, RemoteEntry, encode_snapshots
from imgwire.names import is_of_pre_dump
from transform.errors import TransformError

#: The first size that the original cache cannot take: it counts with 31 bits.
TOO_LARGE = 2 << 30
#: Seconds for which the receiver's kernel may leave bytes unacknowledged, or refuse more, before it counts as dead.
UNHEARD = 30.0
#: Seconds between two looks at what is still unacknowledged. The kernel tells nobody when that becomes nothing; it does
#: within 45 ms of the last byte (delayed acknowledgements), and is looked at only while nothing is left to do.
LOOK = 0.005


class CannotCarry(TransformError):
    """The original wire has no way to say it."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what}: the wire of the original image-cache cannot carry it; use an imgcache there, without --wire criu"
        )


@dataclass
class _Image:
    """An image that is being collected, in the memory file `fd`."""

    name: str
    snapshot: str
    fd: int
    size: int = 0

    def __str__(self) -> str:
        return f"{self.name} of {self.snapshot}"


class OriginalWire:
    """A connection to an original image-cache. `snapshot`: the id of a dump that brings none (`criu dump --stream`)."""

    splices = True
    compresses = False
    outcome = "delivered"

    def __init__(self, sock: trio.socket.SocketType, peer: str, snapshot: str) -> None:
        self._sock, self._peer, self._snapshot = sock, peer, snapshot
        self._ids: list[str] = []
        self._begun = False  #: rounds are told, so a dump is known by its images only
        self._listed = False
        self._open: dict[int, _Image] = {}
        self._seen: set[tuple[str, str]] = set()
        self._lock = trio.Lock()
        self._finished = False
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(UNHEARD * 1000))

    @classmethod
    async def connect(cls, dialer: Dialer, snapshot: str) -> "OriginalWire":
        """Connect, say nothing yet. CannotConnect."""
        transport = await dialer.connect()
        assert isinstance(transport, SocketTransport)
        return cls(transport.sock, str(dialer.address), snapshot)

    async def send(self, message: messages.Message) -> None:
        """Take a message of the sender's."""
        match message:
            case messages.BeginRound(_, snapshot):
                self._begin(snapshot)
            case messages.OpenImage(number, name):
                self._collect(number, name)
            case messages.EndImage(number):
                await self._send_image(self._open[number])
                os.close(self._open.pop(number).fd)
            case messages.ImagesComplete():
                await self._send_list()
            case messages.DropRound():
                self._drop()
            case _:
                raise LocalProtocolError(f"{type(message).__name__} for an original image-cache")
        await trio.lowlevel.checkpoint()

    async def send_bytes(self, image: int, offset: int, data: bytes, *, raw_length: int | None = None) -> None:
        """Collect image bytes."""
        if raw_length is not None:
            raise LocalProtocolError("compressed bytes for an original image-cache")
        write_at_end(self._grown(image, len(data)).fd, data)
        await trio.lowlevel.checkpoint()

    async def send_pipe(self, image: int, offset: int, fd: int) -> int:
        """Collect what is in a pipe, without copying it through this program."""
        size = min(readable_size(fd), MAX_DATA)
        if size:
            splice_to_file(fd, self._grown(image, size).fd, offset, size)
        await trio.lowlevel.checkpoint()
        return size

    async def finish(self) -> None:
        """End the stream once the receiver's kernel has all of it. That is all the acknowledgement that there is.

        The end goes last and alone: until then a receiver cannot take the dump for a whole one.
        """
        with self._telling():
            await self._acknowledged()
            self._sock.shutdown(socket.SHUT_WR)
            await self._acknowledged()
        self._finished = True

    def close(self) -> None:
        """Hang up. If it was not finished, by a reset: the plain end of the stream would look like that of a dump.

        Calling it again does nothing.
        """
        if not self._finished and self._sock.fileno() >= 0:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        for image in self._open.values():
            os.close(image.fd)
        self._open.clear()
        self._sock.close()

    # ---- inside ----

    def _begin(self, snapshot: str) -> None:
        if snapshot in self._ids:
            raise CannotCarry(f"a second round with -D {snapshot}")
        if self._listed:
            raise CannotCarry(f"-D {snapshot} after a dump")
        self._ids.append(snapshot)
        self._begun = True

    def _drop(self) -> None:
        if any(snapshot == self._ids[-1] for snapshot, _ in self._seen):
            raise CannotCarry(f"the end of {self._ids[-1]}, which failed and is to be forgotten")
        self._ids.pop()

    def _collect(self, number: int, name: str) -> None:
        if not self._ids:
            self._ids.append(self._snapshot)
        if (self._ids[-1], name) in self._seen:
            raise CannotCarry(f"{name} of {self._ids[-1]}, a second time")
        self._seen.add((self._ids[-1], name))
        self._open[number] = _Image(name, self._ids[-1], os.memfd_create("imgproxy", os.MFD_CLOEXEC))

    def _grown(self, number: int, size: int) -> _Image:
        """The image, `size` bytes larger."""
        image = self._open[number]
        image.size += size
        if image.size >= TOO_LARGE:
            raise CannotCarry(f"{image}, of {TOO_LARGE >> 30} GiB or more")
        return image

    async def _send_image(self, image: _Image) -> None:
        if not image.size:
            raise CannotCarry(f"{image}, which is empty")
        if not self._begun or not is_of_pre_dump(image.name):
            await self._send_list()
        async with self._lock:
            with self._telling():
                await self._send_header(RemoteEntry(image.name, image.snapshot, OpenMode.WRITE, image.size))
                await self._send_file(image)

    async def _send_list(self) -> None:
        async with self._lock:
            if self._listed:
                return
            self._listed = True
            ids = encode_snapshots(self._ids)
            with self._telling():
                await self._send_header(RemoteEntry(PARENT, "", OpenMode.APPEND, len(ids)))
                await self._send_all(ids)

    async def _send_header(self, entry: RemoteEntry) -> None:
        # With this mark the socket counts as writable only when nothing is left unsent in it.
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 1)
        await trio.lowlevel.wait_writable(self._sock)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 0)
        await self._send_all(entry.encode())

    async def _send_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[await self._sock.send(view) :]

    async def _send_file(self, image: _Image) -> None:
        offset = 0
        while offset < image.size:
            try:
                offset += os.sendfile(self._sock.fileno(), image.fd, offset, min(MAX_DATA, image.size - offset))
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._sock)
            else:
                await trio.lowlevel.checkpoint()

    async def _acknowledged(self) -> None:
        """Wait until nothing is unacknowledged; OSError if that cannot be any more, UNHEARD at most after the last."""
        while True:
            if error := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            if not unacknowledged(self._sock):
                return
            await trio.sleep(LOOK)

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise LinkLost(f"{self._peer}: the original image-cache is gone: {error.strerror}") from error


def unacknowledged(sock: trio.socket.SocketType) -> int:
    """Bytes (the end of the stream counts for one) that the receiver's kernel has not acknowledged (SIOCOUTQ)."""
    raw = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0" * 4)
    size: int = struct.unpack("i", raw)[0]
    return size
