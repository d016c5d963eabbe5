"""Stand-ins for the original image-proxy and image-cache on TCP, and the streams that were recorded between them.

The fake cache takes a stream as the original does, with its weaknesses: a message must come in two reads, of 4 bytes
and of its length; a list of ids replaces the one before; an image comes once and has at least a byte; what it has read
it does not acknowledge.
"""

import gzip
from pathlib import Path

import pytest
import trio

from imgwire.img_remote_messages import LENGTH, PARENT, OpenMode, RemoteEntry, encode_snapshots

RECORDINGS = Path(__file__).parents[2] / "shared/fixtures/img-remote"


def recording(name: str) -> bytes:
    """One connection, whole."""
    path = RECORDINGS / f"{name}.bin.gz"
    if not path.exists():
        pytest.skip(f"the recording {path.name} is not here")
    return gzip.decompress(path.read_bytes())


def image(name: str, snapshot: str, body: bytes) -> bytes:
    """An image on the stream."""
    return RemoteEntry(name, snapshot, OpenMode.WRITE, len(body)).encode() + body


def ids(snapshots: list[str], known: int = 0) -> bytes:
    """The list of ids as a mended proxy sends it, of which `known` bytes went before."""
    body = encode_snapshots(snapshots)
    return RemoteEntry(PARENT, "", OpenMode.APPEND, len(body)).encode() + body[known:]


class FakeImageCache:
    """An image-cache that takes one connection."""

    def __init__(self) -> None:
        self.images: dict[tuple[str, str], bytes] = {}
        self.order: list[str] = []  #: names, the list of ids included, as they came
        self.list = b""
        self.stream = b""
        self.ended = False  #: the stream ended, between two images
        self.done = trio.Event()
        self.address = ""

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Listen, take one connection to its end, and keep it open, as the original does."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
        async with listener:
            task_status.started()
            sock, _ = await listener.socket.accept()
            with sock:
                try:
                    await self._take_all(sock)
                except ConnectionResetError:
                    self.done.set()
                await trio.sleep_forever()

    async def _take_all(self, sock: trio.socket.SocketType) -> None:
        while length := await self._read(sock, LENGTH.size):
            assert len(length) == LENGTH.size, "a header in pieces"
            (size,) = LENGTH.unpack(length)
            message = await self._read(sock, size)
            assert len(message) == size, "a header in pieces"
            entry = RemoteEntry.decode(message)
            body = await self._body(sock, entry.size)
            self.order.append(entry.name)
            if entry.name == PARENT:
                self.list = body
            else:
                assert body, f"{entry.name}: an empty image"
                assert (entry.snapshot, entry.name) not in self.images, f"{entry.name}: written twice"
                self.images[entry.snapshot, entry.name] = body
        self.ended = True
        self.done.set()

    async def _body(self, sock: trio.socket.SocketType, size: int) -> bytes:
        body = bytearray()
        while len(body) < size:
            part = await self._read(sock, min(size - len(body), 1 << 16))
            if not part:
                raise ConnectionResetError("the stream ended inside an image")
            body += part
        return bytes(body)

    async def _read(self, sock: trio.socket.SocketType, size: int) -> bytes:
        data = await sock.recv(size)
        self.stream += data
        return data

    def write_to(self, directory: Path, snapshot: str) -> None:
        """The images of one id as files."""
        for (of, name), body in self.images.items():
            if of == snapshot:
                (directory / name).write_bytes(body)


class FakeImageProxy:
    """An image-proxy that has connected to a cache."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream

    @classmethod
    async def connect(cls, address: str) -> "FakeImageProxy":
        """Connect, and say nothing yet."""
        host, _, port = address.rpartition(":")
        return cls(await trio.open_tcp_stream(host, int(port)))

    async def send(self, raw: bytes) -> None:
        """Send some of the stream."""
        await self._stream.send_all(raw)

    async def send_directory(self, directory: Path, snapshot: str) -> None:
        """Send the images of a dump, the list of ids first."""
        await self.send(ids([snapshot]))
        for path in sorted(directory.glob("*.img")):
            if body := path.read_bytes():
                await self.send(image(path.name, snapshot, body))

    async def finish(self) -> None:
        """That was all."""
        await self._stream.send_eof()

    async def close(self) -> None:
        """Go away."""
        await self._stream.aclose()
