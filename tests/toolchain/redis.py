"""Redis, as scripts/setup-redis builds it and as cc does: servers on UNIX sockets, with threads, and redis-cli."""

import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.conftest import ROOT
from tests.toolchain.pairs import make, output, unpack

#: Threads of a server beside its own and three for what it does in the background.
IO_THREADS = 4
#: What a server is told. Redis looks whether a kernel on aarch64 is one with a known bug; qemu's emulation cannot tell.
OPTIONS = [
    *("--port", "0", "--io-threads", str(IO_THREADS), "--enable-debug-command", "yes"),
    *("--hash-max-listpack-entries", "64", "--save", "", "--ignore-warnings", "ARM64-COW-BUG"),
]
READY = b"Ready to accept connections unix"


@dataclass(frozen=True)
class Programs:
    """How redis-server and redis-cli are run."""

    server: Sequence[str]
    client: Sequence[str]


def pair(place: Path) -> Path:
    """Build the pairs; the folder that has them."""
    output(ROOT / "scripts/setup-redis", "-o", place)
    return place


def of_pair(folder: Path) -> list[Programs]:
    """For each ISA."""
    names = ("redis-server", "redis-cli")
    here, there = ([str(folder / f"bin/{name}_{isa}") for name in names] for isa in ("x86-64", "aarch64"))
    return [Programs([here[0]], [here[1]]), *[Programs(["qemu-aarch64", there[0]], ["qemu-aarch64", there[1]])]]


def by_cc(place: Path) -> Programs:
    """Build them as anybody does, but quickly, with libc's allocator."""
    source = unpack("redis", place, "--debian") / "src"
    make(
        source, "-j2", "MALLOC=libc", "BUILD_TLS=no", "USE_SYSTEMD=no", "OPTIMIZATION=-O0", "redis-server", "redis-cli"
    )
    return Programs([str(source / "redis-server")], [str(source / "redis-cli")])


@dataclass(frozen=True)
class Server:
    """One that runs."""

    programs: Programs
    process: "subprocess.Popen[bytes]"
    socket: Path

    def ask(self, *words: object) -> str:
        """One command; its answer as redis-cli shows it."""
        return output(*self.programs.client, "-s", self.socket, *words).decode().strip()

    def ask_all(self, lines: bytes) -> bytes:
        """Many, one in each line."""
        return output(*self.programs.client, "-s", self.socket, stdin=lines)


@contextmanager
def running(programs: Programs, place: Path, *options: str) -> Iterator[Server]:
    """A server with its files in `place`, which is made; stopped at the end of the block, and it must end well."""
    place.mkdir(exist_ok=True)
    socket = place / "socket"
    words = [*programs.server, *OPTIONS, "--dir", str(place), "--unixsocket", str(socket), *options]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ, "TZ": ""}
    ) as process:
        try:
            assert process.stdout
            told = b""
            while READY not in told:
                line = process.stdout.readline()
                assert line, told.decode(errors="replace")
                told += line
            yield Server(programs, process, socket)
            process.terminate()
            told = process.stdout.read()
            assert process.wait() == 0, told.decode(errors="replace")
        finally:
            process.kill()


def digests(answers: bytes) -> list[bytes]:
    """What DEBUG DIGEST has said among them."""
    return re.findall(rb"^[0-9a-f]{40}$", answers, re.MULTILINE)
