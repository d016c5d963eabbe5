"""What the link runs over: TCP or UNIX sockets, a pair of descriptors, TLS. One small interface for all.

A transport that `splices` takes page payload straight out of a pipe and puts it straight into one; over TLS the bytes
have to pass through us. Errors are trio's: BrokenResourceError (the other side), ClosedResourceError (we).
"""

import os
import socket
from abc import ABC, abstractmethod

import trio

from imgnode.pipes import read_some, splice_in, splice_out

#: What one read asks for when any amount will do: a frame of data.
READ_SIZE = 1 << 20


class Transport(ABC):
    """A connected byte stream, both ways."""

    splices: bool = False

    @abstractmethod
    async def send_all(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send all of `data`; `more` says that payload follows at once."""

    @abstractmethod
    async def receive_some(self, size: int) -> bytes:
        """Receive 1 to `size` bytes; b"" at the end of the stream."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close at once; tasks inside the other calls get ClosedResourceError."""

    async def send_pipe(self, fd: int, size: int) -> None:
        """Send `size` bytes that are in the pipe `fd`, without copying (only if it `splices`)."""
        raise NotImplementedError(f"{type(self).__name__} does not splice")

    async def receive_pipe(self, fd: int, size: int) -> int:
        """Receive 1 to `size` bytes into the pipe `fd`, without copying; 0 at the end of the stream."""
        raise NotImplementedError(f"{type(self).__name__} does not splice")


class SocketTransport(Transport):
    """A TCP or UNIX stream socket without encryption."""

    splices = True

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock
        self._fd = sock.fileno()
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send_all(self, data: bytes | memoryview, *, more: bool = False) -> None:
        view = memoryview(data)
        with _as_trio:
            while view:
                sent = await self.sock.send(view, socket.MSG_MORE if more else 0)
                view = view[sent:]

    async def receive_some(self, size: int) -> bytes:
        with _as_trio:
            return await read_some(self._fd, size)

    async def send_pipe(self, fd: int, size: int) -> None:
        with _as_trio:
            await splice_out(fd, self._fd, size)

    async def receive_pipe(self, fd: int, size: int) -> int:
        with _as_trio:
            return await splice_in(self._fd, fd, size)

    async def aclose(self) -> None:
        self._fd = -1
        self.sock.close()
        await trio.lowlevel.checkpoint()


class DescriptorTransport(Transport):
    """Two descriptors that were handed to us: pipes or sockets, one to read and one to write."""

    splices = True

    def __init__(self, reader: int, writer: int) -> None:
        self._reader, self._writer = reader, writer
        for fd in {reader, writer}:
            os.set_blocking(fd, False)

    async def send_all(self, data: bytes | memoryview, *, more: bool = False) -> None:
        view = memoryview(data)
        with _as_trio:
            while view:
                try:
                    view = view[os.write(self._writer, view) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._writer)

    async def receive_some(self, size: int) -> bytes:
        with _as_trio:
            return await read_some(self._reader, size)

    async def send_pipe(self, fd: int, size: int) -> None:
        with _as_trio:
            await splice_out(fd, self._writer, size)

    async def receive_pipe(self, fd: int, size: int) -> int:
        with _as_trio:
            return await splice_in(self._reader, fd, size)

    async def aclose(self) -> None:
        fds, self._reader, self._writer = {self._reader, self._writer}, -1, -1
        for fd in fds - {-1}:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)
        await trio.lowlevel.checkpoint()


class StreamTransport(Transport):
    """Any trio stream: TLS in practice. Bytes pass through us."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes | memoryview, *, more: bool = False) -> None:  # the record layer has no MORE
        await self._stream.send_all(data)

    async def receive_some(self, size: int) -> bytes:
        return bytes(await self._stream.receive_some(min(size, READ_SIZE)))

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


class _AsTrio:
    """What the kernel says of a socket, in trio's words. A class: it is entered for every chunk, and half as costly."""

    def __enter__(self) -> None: ...

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, OSError):
            raise trio.BrokenResourceError(error.strerror or str(error)) from error


_as_trio = _AsTrio()
