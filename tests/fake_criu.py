"""A CRIU that only talks: the bytes of `criu dump --stream` and `criu restore --stream`, recorded with 4.1.1.

Its two sides are used inside a test, where each step can be left out or done wrongly, or as a process of its own that
can be killed: `python -m tests.fake_criu dump|restore SOCKET NAME...`. Nothing of the code under test is used here.
"""

import array
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

import trio
from trio.lowlevel import FdStream

EXISTS = bytes.fromhex("020000000801")
MISSING = bytes.fromhex("020000000800")


def request(name: str | bytes) -> bytes:
    """How CRIU asks for an image; names longer than 127 bytes take a second byte of length."""
    raw = name if isinstance(name, bytes) else name.encode()
    size = bytes([len(raw)]) if len(raw) < 128 else bytes([len(raw) & 0x7F | 0x80, len(raw) >> 7])
    body = b"\x0a" + size + raw
    return struct.pack("<I", len(body)) + body


class _Criu:
    """A connection to a streamer's socket."""

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self.sock = sock

    async def send(self, raw: bytes, *fds: int) -> None:
        """Send bytes as they are, descriptors with the first of them."""
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = await self.sock.sendmsg([raw], ancillary)
        while sent < len(raw):
            sent += await self.sock.send(raw[sent:])

    async def hung_up(self) -> bool:
        """Wait for the other side to say something; whether it was the end."""
        try:
            return await self.sock.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()


class FakeDump(_Criu):
    """`criu dump`."""

    async def open(self, name: str | bytes) -> FdStream:
        """Ask for an image and pass its pipe; returns the end to write."""
        await self.send(request(name))
        return await self.pass_pipe()

    async def pass_pipe(self) -> FdStream:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            await self.send(b"\0", reader)
        except BaseException:
            os.close(writer)
            raise
        finally:
            os.close(reader)
        return FdStream(writer)

    async def image(self, name: str, data: bytes) -> None:
        """Write one image, whole."""
        async with await self.open(name) as pipe:
            await pipe.send_all(data)


class FakeRestore(_Criu):
    """`criu restore`."""

    async def open(self, name: str | bytes) -> FdStream | None:
        """Ask for an image; returns the end to read, None if there is no such image."""
        await self.send(request(name))
        answer = b""
        while len(answer) < len(EXISTS):
            part = await self.sock.recv(len(EXISTS) - len(answer))
            if not part:
                raise EOFError("the streamer hung up")
            answer += part
        if answer == MISSING:
            return None
        assert answer == EXISTS, answer.hex()
        return await self.pass_pipe()

    async def pass_pipe(self) -> FdStream:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            await self.send(b"\0", writer)
        except BaseException:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        return FdStream(reader)

    async def image(self, name: str) -> bytes | None:
        """Read one image, whole."""
        pipe = await self.open(name)
        if pipe is None:
            return None
        async with pipe:
            return b"".join([part async for part in pipe])


async def connect_dump(path: Path) -> FakeDump:
    return FakeDump((await trio.open_unix_socket(path)).socket)


async def connect_restore(path: Path) -> FakeRestore:
    return FakeRestore((await trio.open_unix_socket(path)).socket)


async def _main(command: str, path: str, names: list[str]) -> None:
    """Write or read the images half-way and say so; a killed one leaves all of them open.

    "tree": begin a task that has no socket of ours, read the images whole and tell the task's pid.
    """
    if command == "tree":
        restore = await connect_restore(Path(path))
        task = await trio.lowlevel.open_process(["sleep", "infinity"], stdout=subprocess.DEVNULL)
        for name in names:
            assert await restore.image(name) is not None
        print(task.pid, flush=True)
        await trio.sleep_forever()
    if command == "dump":
        dump = await connect_dump(Path(path))
        pipes = [await dump.open(name) for name in names]
        for pipe in pipes:
            await pipe.send_all(b"half")
    else:
        restore = await connect_restore(Path(path))
        for name in names:
            opened = await restore.open(name)
            assert opened is not None
            await opened.receive_some(4)
    print("half-way", flush=True)
    await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(_main, sys.argv[1], sys.argv[2], sys.argv[3:])
