"""The original `criu --remote` (2015 to 2020) that only talks: the bytes of its two variants, as recorded.

One connection for each image. It connects in its work directory (-W, else -D) for the push of its id and for its end,
in its images directory for everything else. The variant `pipe` passes one end of a pipe, `nopipe` uses the socket.

It is used inside a test, where each step can be left out or done wrongly, or as a process that can be killed and has
CRIU's command line: `python -m tests.fake_remote_criu dump --remote -D s1 -t 77 --steps push image:core-1.img hold`.
Nothing of the code under test is used here.
"""

import array
import hashlib
import os
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import trio
from trio.lowlevel import FdStream

PROXY, CACHE = "img-proxy.sock", "img-cache.sock"
READ, WRITE, APPEND = 0, 1, 1024
EXISTS, MISSING = bytes.fromhex("020000000800"), bytes.fromhex("020000000802")
LIST = "parent"
CHUNK = 1 << 20


def varint(value: int) -> bytes:
    head = value & 0x7F
    return bytes([head]) if value < 0x80 else bytes([head | 0x80]) + varint(value >> 7)


def text(number: int, value: str) -> bytes:
    raw = value.encode()
    return bytes([number << 3 | 2]) + varint(len(raw)) + raw


def framed(body: bytes) -> bytes:
    return struct.pack("<I", len(body)) + body


def entry(name: str, snapshot: str, mode: int) -> bytes:
    """A local_image_entry, sent with one call."""
    return framed(text(1, name) + text(2, snapshot) + b"\x18" + varint(mode))


def identifier(snapshot: str) -> bytes:
    """A snapshot_id_entry."""
    return framed(text(1, snapshot))


def body(name: str, size: int | None = None) -> bytes:
    """What a process writes into its image of that name."""
    raw = name.encode() + b"\n"
    return raw if size is None else (raw * (size // len(raw) + 1))[:size]


@dataclass
class RemoteCriu:
    """One run of `criu --remote`. `side`: the socket of the proxy (pre-dump and dump) or of the cache (restore)."""

    side: str
    directory: Path
    snapshot: str
    variant: str = "pipe"
    work: Path | None = None

    # ---- what is said in one go: blocking only while the other side's backlog is full ----

    def connect(self, raw: bytes, *, work: bool = False) -> socket.socket:
        """A connection that begins with these bytes."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(str(((self.work if work else None) or self.directory) / self.side))
            if raw:
                sock.sendall(raw)
        except BaseException:
            sock.close()
            raise
        return sock

    def push_now(self) -> None:
        """The first thing in a pre-dump and in a dump; no answer."""
        with self.connect(entry(LIST, "", APPEND), work=True) as sock:
            sock.sendall(identifier(self.snapshot))

    def open_now(self, name: str, snapshot: str | None = None) -> int:
        """Open an image for writing; the descriptor to write to. No answer."""
        sock = self.connect(entry(name, self.snapshot if snapshot is None else snapshot, WRITE))
        if self.variant == "nopipe":
            return sock.detach()
        with sock:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            pass_descriptor(sock, reader)
        return writer

    def image_now(self, name: str, data: bytes) -> None:
        """Write an image that fits into the pipe."""
        fd = self.open_now(name)
        try:
            assert not data or os.write(fd, data) == len(data)
        finally:
            os.close(fd)

    def finish_now(self) -> None:
        """The end of a dump, whatever became of it, or of a restore that has succeeded."""
        self.connect(entry("", "", WRITE if self.side == PROXY else READ), work=True).close()

    # ---- the same, and what has answers, in a test ----

    async def push(self) -> None:
        await trio.to_thread.run_sync(self.push_now)

    async def finish(self) -> None:
        await trio.to_thread.run_sync(self.finish_now)

    async def open(self, name: str, snapshot: str | None = None) -> FdStream:
        return FdStream(await trio.to_thread.run_sync(self.open_now, name, snapshot))

    async def image(self, name: str, data: bytes) -> None:
        """Write one image, whole."""
        async with await self.open(name) as stream:
            await stream.send_all(data)

    async def ask(self, raw: bytes) -> trio.socket.SocketType:
        return trio.socket.from_stdlib_socket(await trio.to_thread.run_sync(self.connect, raw))

    async def ids(self) -> list[str]:
        """The list of ids."""
        with await self.ask(entry(LIST, "", READ)) as sock:
            assert await exactly(sock, len(EXISTS)) == EXISTS
            found = []
            while size := await exactly(sock, 4, end=True):
                message = await exactly(sock, struct.unpack("<I", size)[0])
                found.append(message[2 if len(message) < 130 else 3 :].decode())
                assert framed(message) == identifier(found[-1])
        return found

    async def open_read(self, name: str, snapshot: str | None = None) -> FdStream | None:
        """Open an image for reading; None if there is none. EOFError if the other side hangs up."""
        sock = await self.ask(entry(name, self.snapshot if snapshot is None else snapshot, READ))
        try:
            answer = await exactly(sock, len(EXISTS))
            if answer == MISSING:
                return None
            assert answer == EXISTS, answer.hex()
            if self.variant == "nopipe":
                return FdStream(sock.detach())
            reader, writer = os.pipe2(os.O_CLOEXEC)
            try:
                pass_descriptor(sock, writer)
            except BaseException:
                os.close(reader)
                raise
            return FdStream(reader)
        finally:
            sock.close()

    async def read(self, name: str, snapshot: str | None = None) -> bytes | None:
        """Read one image, whole."""
        stream = await self.open_read(name, snapshot)
        if stream is None:
            return None
        async with stream:
            return b"".join([part async for part in stream])


def pass_descriptor(sock: "socket.socket | trio.socket.SocketType", fd: int) -> None:
    """Pass an end of a pipe with a byte, and close it here."""
    stdlib = socket.socket(fileno=os.dup(sock.fileno()))
    try:
        stdlib.sendmsg([b"\0"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    finally:
        os.close(fd)
        stdlib.close()


async def exactly(sock: trio.socket.SocketType, size: int, *, end: bool = False) -> bytes:
    """So many bytes; b"" at the end of the connection if that may be, else EOFError."""
    data = b""
    while len(data) < size:
        part = await sock.recv(size - len(data))
        if not part and end and not data:
            return b""
        if not part:
            raise EOFError("the other side hung up")
        data += part
    return data


async def hung_up(sock: "socket.socket | trio.socket.SocketType") -> bool:
    """Wait for the other side to say something on an open connection; whether it was the end."""
    try:
        with trio.socket.from_stdlib_socket(sock) if isinstance(sock, socket.socket) else sock as opened:
            return await opened.recv(1) == b""
    except ConnectionResetError:
        return True


# ---- as a process ----


def given(words: Sequence[str], *names: str) -> list[str]:
    """The values of an option on a command line like CRIU's."""
    return [words[index + 1] for index, word in enumerate(words) if word in names]


async def _step(criu: RemoteCriu, step: str, held: list[FdStream]) -> None:
    """Do one step; what it leaves open goes to `held`."""
    action, _, rest = step.partition(":")
    name, _, size = rest.partition(":")
    match action:
        case "push":
            await criu.push()
        case "image":
            await criu.image(name, body(name, int(size) if size else None))
        case "now":  # without a thread or a checkpoint: fast
            criu.image_now(name, body(name))
        case "zeros":
            async with await criu.open(name) as stream:
                for start in range(0, int(size), CHUNK):
                    await stream.send_all(bytes(min(CHUNK, int(size) - start)))
        case "half":  # of an image, which stays open until `whole`
            held.append(await criu.open(name))
            await held[-1].send_all(body(name))
        case "whole":
            for stream in held:
                await stream.aclose()
        case "connect":  # and say nothing
            held.append(FdStream((await criu.ask(b"")).detach()))
        case "finish":
            await criu.finish()
        case "hold":  # until it gets a line
            print("holds", flush=True)
            await trio.to_thread.run_sync(sys.stdin.readline)
        case _:
            await _read(criu, action, name, held)


async def _read(criu: RemoteCriu, action: str, name: str, held: list[FdStream]) -> None:
    match action:
        case "ids":
            print("ids", *await criu.ids(), flush=True)
        case "read":
            data = await criu.read(name)
            print("read", name, hashlib.sha256(data).hexdigest() if data is not None else "missing", flush=True)
        case "count":
            opened = await criu.open_read(name)
            assert opened is not None
            print("count", await counted(opened), flush=True)
        case "halfread":
            opened = await criu.open_read(name)
            assert opened is not None
            held.append(opened)
            print("halfread", len(await opened.receive_some(10)), flush=True)
        case _:
            raise ValueError(action)


async def counted(stream: FdStream) -> int:
    """How many bytes there are, all zero."""
    total, zeros = 0, bytes(CHUNK)
    async with stream:
        while part := await stream.receive_some(CHUNK):
            assert part == zeros[: len(part)]
            total += len(part)
    return total


async def _main(words: Sequence[str]) -> None:
    command, steps = words[0], words[words.index("--steps") + 1 :]
    snapshot = given(words, "-D", "--images-dir")[-1]
    socket_directory = Path(given(words, "--in")[-1])
    variant = "nopipe" if "--nopipe" in words else "pipe"
    criu = RemoteCriu(CACHE if command == "restore" else PROXY, socket_directory, snapshot, variant)
    held: list[FdStream] = []
    for step in steps:
        await _step(criu, step, held)


def command(verb: str, directory: Path, snapshot: str, *steps: str, options: Sequence[object] = ()) -> list[str]:
    """The command line of such a process; its sockets are in `directory`."""
    words = [sys.executable, "-m", "tests.fake_remote_criu", verb, "--remote", "-D", snapshot, "--in", directory]
    return [str(word) for word in [*words, *options, "--steps", *steps]]


if __name__ == "__main__":
    trio.run(_main, sys.argv[1:])
