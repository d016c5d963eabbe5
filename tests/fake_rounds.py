"""A CRIU that only talks to a page server: the bytes of `criu pre-dump --page-server` and of `criu dump`, as recorded.

It is used inside a test, where each step can be left out or done wrongly, or as the `criu` command of a test, be it of
`imgproxy migrate` or of whoever types `imgproxy rounds`: then its pre-dumps do what the test has planned for each, one
after the other, and everything else is done by the real CRIU, which is spared what this kernel cannot do
(`--track-mem`) and knows nothing of the pre-dumps.

    command = planned(directory, real_criu, "good", "fails")  # a path for --criu; `runs(directory)` tells what was run
"""

import json
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.imgwire.page_server_rounds import RECORDED, turns

ROOT = Path(__file__).resolve().parent.parent
PAGE = 4096
PRESENT, LAZY, PARENT = 4, 2, 1
SPLICE_MODE, READ_MODE = 1, 2  #: of a pre-dump
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
pre-dump* | dump*) cd {root} && exec {words} "$@" ;;
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
    command = directory / "criu"
    words = f"{sys.executable} -m tests.fake_rounds {directory} {real}"
    command.write_text(COMMAND.format(root=ROOT, words=words, real=real))
    command.chmod(0o700)
    return command


def runs(directory: Path, *actions: str) -> list[list[str]]:
    """The command lines so far, of these actions."""
    told = directory / "runs"
    lines = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    return [line for line in lines if line[0] in actions]


def told(directory: Path, word: str) -> bool:
    """Whether a pre-dump has come to `half-way`, or was `let-go`."""
    return (directory / word).exists()


def go_on(directory: Path) -> None:
    """Let the pre-dump go on that has come half-way and waits, if it still lives."""
    with (directory / "go-on").open("rb+", buffering=0) as waiting:
        waiting.write(b"\n")


def value(words: list[str], name: str) -> str | None:
    """What an option of a command line is given."""
    return words[words.index(name) + 1] if name in words else None


def _pre_dump(directory: Path, words: list[str]) -> int:
    plan = (directory / "plan").read_text().split()
    step = plan[min(len(runs(directory, "pre-dump")), len(plan)) - 1]
    images = _enter(words)
    code = _speak(directory, step, _page_server(words))
    _leave(images, step, code)
    return code


def _enter(words: list[str]) -> int:
    """As CRIU does: its images directory stays open, with a link to its parent, and it goes to its work directory."""
    images = os.open(value(words, "-D") or ".", os.O_RDONLY)
    if parent := value(words, "--prev-images-dir"):
        os.symlink(parent, "parent", dir_fd=images)
    os.chdir(value(words, "-W") or f"/proc/self/fd/{images}")
    return images


def _page_server(words: list[str]) -> socket.socket:
    if fd := value(words, "--ps-socket"):
        return socket.socket(fileno=int(fd))
    return socket.create_connection((value(words, "--address") or "", int(value(words, "--port") or "")))


def _leave(images: int, step: str, code: int) -> None:
    """It writes its inventory in any case, its statistics only if all went well."""
    Path(f"/proc/self/fd/{images}/inventory.img").write_bytes(inventory(READ_MODE if step == "reads" else SPLICE_MODE))
    if code == 0 and step != "silent":
        Path("stats-dump").write_bytes(b"statistics")


def inventory(mode: int) -> bytes:
    """The image that a pre-dump writes in any case."""
    entry = bytes([0x08, 2, 0x48, mode])
    return struct.pack("<II", 0x58313116, len(entry)) + entry


def _speak(directory: Path, step: str, sock: socket.socket) -> int:
    with sock:
        if step == "silent":
            return 0
        if step == "hesitates" and not _may_go_on(directory, sock):
            return 1
        *said, last = turns(RECORDED["4.1.1"])
        for turn in said:
            sock.sendall(turn)
            assert sock.recv(1)
        if step == "waits" and not _may_go_on(directory, sock):
            return 1
        if step in ("dies", "holds"):
            sock.sendall(last[:5000])
            (directory / "half-way").touch()
            if step == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            with suppress(ConnectionResetError):  # it has not read all that we said
                sock.recv(1)
            (directory / "let-go").touch()
            return 1
        sock.sendall(last)
        assert sock.recv(4) == bytes(4)
    return 1 if step == "fails" else 0


def _may_go_on(directory: Path, sock: socket.socket) -> bool:
    """Wait until it may; False if the page server hangs up."""
    with (directory / "go-on").open("rb+", buffering=0) as told:
        (directory / "half-way").touch()
        ready, _, _ = select.select([told.fileno(), sock.fileno()], [], [])
        return told.fileno() in ready


def _without(words: list[str], *names: str) -> list[str]:
    return [word for index, word in enumerate(words) if not {word, words[index - 1]} & set(names)]


def _main(place: str, real: str, *given: str) -> int:
    directory, words = Path(place), list(given)
    with (directory / "runs").open("a") as log:
        log.write(json.dumps(words) + "\n")
    if words[0] == "dump":
        os.execv(real, [real, *(word for word in _without(words, "--prev-images-dir") if word != "--track-mem")])
    return _pre_dump(directory, words)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
