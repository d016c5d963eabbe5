"""Guests of the test bed: virtual machines with a kernel of their own, of either ISA, for one test each.

    async with guest("amd64") as vm:
        done = await vm.run("criu", "check")  # .code, .stdout, .stderr
        cache = await vm.start("imgcache", "-D", "/run/b", "--listen", "0.0.0.0:7000", "--insecure")
        await cache.wait_stderr('"ready"')
        address = f"127.0.0.1:{await vm.forward(7000)}"  # leads there from here; from another guest: HOST instead

The clone and its cache are seen inside, read-only, under the same paths as here; the project's commands are on PATH.
The first guest on a machine makes the test bed (scripts/testbed). A guest is killed when its block is left, and by the
kernel if this process dies of anything.
"""

import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import IO, TypeVar

import trio

from tests.nodes import Ended
from tests.testbed.agent import ENDED, INPUT, READY, SIGNAL, START, STDERR, STDOUT, Frames, frame
from tests.testbed.machine import Hardware, Monitor, Places, running

ROOT = Path(__file__).resolve().parent.parent.parent
PLACES = Places(ROOT, Path(os.environ.get("IMGPROXY_CACHE") or ROOT / ".cache").resolve())
USUAL = Hardware()
BOOT_DEADLINE = 120.0  # seconds; alone on two cores it takes 8 (amd64) or 6 (arm64)
DEADLINE = 60.0  # seconds for anything that a test waits for: emulation is 10 to 20 times slower than the machine
READ_SIZE = 1 << 16
CONSOLE_TAIL = 2000  # characters of the console in the report of a failure

T = TypeVar("T")


class Command:
    """A program that runs in a guest."""

    def __init__(self, vm: "Guest", number: int, words: list[str]) -> None:
        self.vm, self.words = vm, words
        self.code: int | None = None  #: the exit code; minus the signal's number if one ended it; None while it runs
        self._number = number
        self._written = {STDOUT: bytearray(), STDERR: bytearray()}
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def output(self) -> bytes:
        """What it has written to stdout so far."""
        return bytes(self._written[STDOUT])

    @property
    def stdout(self) -> str:
        """The same as text."""
        return self.output.decode(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written to stderr so far."""
        return self._written[STDERR].decode(errors="replace")

    async def write(self, data: bytes) -> None:
        """Send input."""
        for at in range(0, len(data), READ_SIZE):
            await self.vm.send(self._number, INPUT, data[at : at + READ_SIZE])

    async def end_input(self) -> None:
        """It will read the end of its input."""
        await self.vm.send(self._number, INPUT, b"")

    async def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        await self.vm.send(self._number, SIGNAL, bytes([number]))

    async def wait(self, deadline: float = DEADLINE) -> Ended:
        """Wait for its end. AssertionError after `deadline` seconds."""
        code = await self._wait_for(lambda: self.code, "to end", deadline)
        return Ended(code, self.stdout, self.stderr)

    async def wait_stderr(self, text: str, deadline: float = DEADLINE) -> str:
        """Wait until it has written this to stderr; what it wrote."""
        return await self._wait_for(lambda: self.stderr if text in self.stderr else None, f"to say {text!r}", deadline)

    async def _wait_for(self, find: Callable[[], T | None], what: str, deadline: float) -> T:
        with trio.move_on_after(deadline):
            while (found := find()) is None and self.code is None and not self.vm.dead:
                await self._waiting.park()
        found = find()
        if found is None:
            raise AssertionError(f"{self}: {what}, not within {deadline} s; {self.stdout}{self.stderr}{self.vm.told()}")
        return found

    def take(self, kind: int, payload: bytes) -> None:
        """Something came from it."""
        if kind == ENDED:
            self.code = int(payload)
        else:
            self._written[kind] += payload
        self.wake()

    def wake(self) -> None:
        """Let those who wait look again."""
        self._waiting.unpark_all()

    def __str__(self) -> str:
        return f"{' '.join(self.words[:4])} in {self.vm}"


class Guest:
    """A machine that runs."""

    def __init__(self, isa: str, channel: trio.SocketStream, monitor: Monitor, console: IO[bytes]) -> None:
        self.isa = isa
        self.release = ""  #: of its kernel
        self.dead = False
        self._channel, self._monitor, self._console = channel, monitor, console
        self._sending = trio.Lock()
        self._booted = trio.Event()
        self._numbers = count(1)
        self._commands: dict[int, Command] = {}

    async def start(self, *words: object, directory: str = "/") -> Command:
        """Start a program; its words are a command on PATH, or with a path, and arguments."""
        command = Command(self, next(self._numbers), [str(word) for word in words])
        self._commands[command._number] = command
        await self.send(command._number, START, json.dumps([command.words, directory]).encode())
        return command

    async def run(self, *words: object, directory: str = "/", stdin: bytes = b"", deadline: float = DEADLINE) -> Ended:
        """Run a program to its end."""
        return await (await self._feed(words, directory, stdin)).wait(deadline)

    async def _feed(self, words: tuple[object, ...], directory: str, stdin: bytes) -> Command:
        command = await self.start(*words, directory=directory)
        await command.write(stdin)
        await command.end_input()
        return command

    async def put(self, content: bytes | Path, path: str, mode: int = 0o644) -> None:
        """Write a file in the guest: these bytes, or a copy of a file of the host."""
        data = content.read_bytes() if isinstance(content, Path) else content
        done = await self.run("sh", "-c", f'cat >"$1" && chmod {mode:o} "$1"', "put", path, stdin=data)
        assert done.code == 0, done.output

    async def get(self, path: str) -> bytes:
        """What is in a file of the guest."""
        command = await self._feed(("cat", path), "/", b"")
        done = await command.wait()
        assert done.code == 0, done.stderr
        return command.output

    async def forward(self, port: int) -> int:
        """The port on 127.0.0.1 here that leads to a TCP port of the guest."""
        return await self._monitor.forward(port)

    async def send(self, number: int, kind: int, payload: bytes) -> None:
        """Send one frame to the agent."""
        assert not self.dead, f"the guest {self} has ended{self.told()}"
        try:
            async with self._sending:
                await self._channel.send_all(frame(number, kind, payload))
        except trio.BrokenResourceError as error:
            raise AssertionError(f"the guest {self} has ended{self.told()}") from error

    async def boot(self, deadline: float = BOOT_DEADLINE) -> None:
        """Wait until it takes commands."""
        with trio.move_on_after(deadline):
            await self._booted.wait()
        assert self._booted.is_set() and not self.dead, f"{self} does not boot{self.told()}"
        await self._monitor.open()

    async def follow(self) -> None:
        """Read what the agent sends, until it is gone."""
        frames = Frames()
        try:
            while data := await self._channel.receive_some(READ_SIZE):
                for number, kind, payload in frames.feed(data):
                    self._take(number, kind, payload)
        except trio.BrokenResourceError:
            pass  # the same as its end: QEMU was killed
        self.dead = True
        self._booted.set()
        for command in self._commands.values():
            command.wake()

    def _take(self, number: int, kind: int, payload: bytes) -> None:
        if kind == READY:
            self.release = payload.decode()
            self._booted.set()
        else:
            self._commands[number].take(kind, payload)

    def told(self) -> str:
        """The end of its console, for the report of a failure."""
        self._console.seek(0)
        return f"; console of {self}: {self._console.read().decode(errors='replace')[-CONSOLE_TAIL:]}"

    def __str__(self) -> str:
        return f"{self.isa} guest"


@asynccontextmanager
async def guest(isa: str, hardware: Hardware = USUAL) -> AsyncIterator[Guest]:
    """Boot a guest of this ISA, amd64 or arm64; it is killed at the end of the block."""
    await trio.run_process([str(ROOT / "scripts/testbed"), "setup", isa])
    with running(isa, PLACES, hardware) as (agent, monitor, console):
        channel, control = (trio.SocketStream(trio.socket.from_stdlib_socket(end)) for end in (agent, monitor))
        vm = Guest(isa, channel, Monitor(control), console)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(vm.follow)
            await vm.boot()
            yield vm
            nursery.cancel_scope.cancel()
