"""A CRIU that only talks to a page server: the bytes of `criu pre-dump --page-server` and of `criu dump`, as recorded.

It is used inside a test, where each step can be left out or done wrongly, or as the `criu` command of a test, be it of
`imgproxy migrate` or of whoever types `imgproxy rounds`: then its pre-dumps do what the test has planned for each, one
after the other, and everything else is done by the real CRIU, which is spared what this kernel cannot do
(`--track-mem`) and knows nothing of the pre-dumps.

    command = planned(directory, real_criu, "good", "fails")  # a path for --criu; `runs(directory)` tells what was run
"""

import os
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import trio

from tests import fake_rounds_command
from tests.fake_rounds_command import READ_MODE, SPLICE_MODE, inventory, runs, value
from tests.imgwire.page_server_rounds import RECORDED, turns

__all__ = ["READ_MODE", "SPLICE_MODE", "RoundClient", "go_on", "inventory", "planned", "runs", "told", "value"]

PAGE = 4096
PRESENT, LAZY, PARENT = 4, 2, 1
OPEN2, PARENT_ASKED, ADD_F, CLOSE, FORCE_CLOSE = 4, 5, 6, 0x1023, 0x1024
NARROW, WIDE = "<IIQQ", "<I4xQQQ"  #: a header up to CRIU 4.1, and since 4.2


@dataclass
class RoundClient:
    """One run of a CRIU, seen from its page server. Its pagemaps are tasks', named by their pids."""

    sock: trio.socket.SocketType
    layout: str = NARROW

    async def say(self, raw: bytes) -> None:
        """Send these bytes."""
        await trio.SocketStream(self.sock).send_all(raw)

    async def hear(self, size: int) -> bytes:
        """Wait for an answer of so many bytes. EOFError if the page server hangs up."""
        data = b""
        while len(data) < size:
            part = await self.sock.recv(size - len(data))
            if not part:
                raise EOFError("the page server hung up")
            data += part
        return data

    def header(self, command: int, pid: int = 0, pages: int = 0, address: int = 0) -> bytes:
        """A command."""
        return struct.pack(self.layout, command, pages, address, pid << 8 | 1 if pid else 0)

    async def asks(self, pid: int) -> bool:
        """Whether the round before has a task."""
        await self.say(self.header(PARENT_ASKED, pid))
        return await self.hear(4) != bytes(4)

    async def opens(self, pid: int) -> bool:
        """Begin a task; whether the round before has it."""
        await self.say(self.header(OPEN2, pid))
        return await self.hear(1) != b"\0"

    async def brings(self, pid: int, address: int, data: bytes, flags: int = PRESENT) -> None:
        """Pages of a task."""
        await self.say(self.header(flags << 16 | ADD_F, pid, len(data) // PAGE, address) + data)

    async def refers(self, pid: int, address: int, pages: int) -> None:
        """To pages of the round before."""
        await self.say(self.header(PARENT << 16 | ADD_F, pid, pages, address))

    async def closes(self, command: int = CLOSE) -> int:
        """End the round; the page server's status."""
        await self.say(self.header(command))
        status: int = struct.unpack("<i", await self.hear(4))[0]
        return status

    async def plays(self, said: list[bytes]) -> list[bytes]:
        """Say what ends with a command that is answered, hear the answer, and so on; the last is CLOSE."""
        answers = []
        for number, turn in enumerate(turn for turn in said if turn):
            await self.say(turn)
            last = number == sum(map(bool, said)) - 1
            answers.append(await self.hear(4 if last else 1))
        return answers


# ---- as a command ----


#: What needs no plan goes without Python: it is asked many times.
COMMAND = """#!/bin/sh
case "$*" in
"check --feature mem_dirty_track") exit 0 ;;
pre-dump* | dump*) exec {words} "$@" ;;
esac
exec {real} "$@"
"""


def planned(directory: Path, real: Path, *plan: str) -> Path:
    """The command; the pre-dumps go by this plan, those behind its end by its last word.

    good | fails (exit code 1, though all was said) | silent (says nothing, exit code 0) | dies (half-way) | holds
    (half-way, until the page server hangs up) | reads (like --pre-dump-mode read of a configuration file) | waits
    (half-way, until it hears `go_on` or the page server hangs up) | hesitates (waits, but before its first word).
    """
    os.mkfifo(directory / "go-on")
    (directory / "plan").write_text(" ".join(plan))
    (directory / "turns").write_text(" ".join(turn.hex() for turn in turns(RECORDED["4.1.1"])))
    command = directory / "criu"
    words = f"{sys.executable} -S {fake_rounds_command.__file__} {directory} {real}"
    command.write_text(COMMAND.format(words=words, real=real))
    command.chmod(0o700)
    return command


def told(directory: Path, word: str) -> bool:
    """Whether a pre-dump has come to `half-way`, or was `let-go`."""
    return (directory / word).exists()


def go_on(directory: Path) -> None:
    """Let the pre-dump go on that has come half-way and waits, if it still lives."""
    with (directory / "go-on").open("rb+", buffering=0) as waiting:
        waiting.write(b"\n")
