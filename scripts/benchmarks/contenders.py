"""Ways to move a process from one node to the other, all behind one interface.

`prepared` sets up what may wait for a migration beforehand (servers, a restore that was started first) and gives the
move itself, which returns when the process has been restored. What is timed is the same for all: see `trial`.
"""

import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from imgcache.hook import SCRIPT as RESTORE_SCRIPT
from imgcache.hook import SOCKET as CACHE_SOCKET
from imgnode.control_client import ControlClient
from imgproxy.hook import SCRIPT as DUMP_SCRIPT
from scripts.benchmarks.nodes import Node, Program, until
from scripts.benchmarks.subject import Subject

PORT = 7000
#: What `socat` needs to wait for its other end.
RETRY = "retry=500,interval=0.02"

Move = Callable[[], Awaitable[None]]


@dataclass
class Trip:
    """What one trial gives to a contender: two fresh directories that both nodes see, on tmpfs and on the disk."""

    source: Node
    destination: Node
    directory: Path
    disk: Path
    subjects: list[Subject]
    criu: str
    note: Path  #: where the wrapper around CRIU writes down when each dump started
    found: dict[str, Any] = field(default_factory=dict)  #: what the contender itself tells, for the record

    @property
    def dump_started(self) -> float:
        """When the first dump was started, in seconds since the epoch."""
        return min(float(line) for line in self.note.read_text().split())

    def make(self, name: str, *, on_disk: bool = False) -> Path:
        """A new directory."""
        path = (self.disk if on_disk else self.directory) / name
        path.mkdir(mode=0o700)
        return path


class Contender(ABC):
    """One way to move a process."""

    name: str

    @asynccontextmanager
    @abstractmethod
    async def prepared(self, trip: Trip) -> AsyncIterator[Move]:
        """Set up what may wait; the block may then await the move once."""
        yield NotImplemented


@dataclass
class ByHand(Contender):
    """imgcache, imgproxy, `criu restore --stream` waiting, then `criu dump --stream`: any number of sessions."""

    name: str = "imgproxy"
    proxy_options: tuple[str, ...] = ("--compress", "off")
    cache_options: tuple[str, ...] = ()
    tracer: Callable[[Path], tuple[str, ...]] = lambda _: ()  #: in front of each program, as in `strace -o LOG`
    unix: bool = False  #: a UNIX socket as the link, else TCP over loopback
    cache: Program | None = None
    proxies: list[Program] = field(default_factory=list)

    @asynccontextmanager
    async def prepared(self, trip: Trip) -> AsyncIterator[Move]:
        here = trip.make("cache")
        link = f"unix:{trip.directory}/link" if self.unix else f"127.0.0.1:{PORT}"
        command = [*self.tracer(here / "trace"), "imgcache", "--listen", link, "-D", str(here)]
        self.cache = await trip.destination.start_service(
            here / "log", *command, "--criu", trip.criu, *self.cache_options
        )
        self.proxies = []
        for number in range(len(trip.subjects)):
            there = trip.make(f"proxy{number}")
            command = [*self.tracer(there / "trace"), "imgproxy", "--to", link, "-D", str(there)]
            self.proxies.append(await trip.source.start_service(there / "log", *command, *self.proxy_options))
        restores = [self._restore(trip, here, number) for number in range(len(trip.subjects))]
        await _until_restores_wait(here, len(restores))

        async def move() -> None:
            async with trio.open_nursery() as nursery:
                for number, subject in enumerate(trip.subjects):
                    nursery.start_soon(self._dump, trip, number, subject)
                for program in restores:
                    nursery.start_soon(program.wait)

        yield move
        for proxy in self.proxies:
            await proxy.wait()

    @staticmethod
    def _restore(trip: Trip, directory: Path, number: int) -> Program:
        log = f"restore{number}.log"
        command = [trip.criu, "restore", "--stream", "-D", str(directory), "-d", "-o", log]
        return trip.destination.start(
            directory / f"{log}.said", *command, "--action-script", str(directory / RESTORE_SCRIPT)
        )

    @staticmethod
    async def _dump(trip: Trip, number: int, subject: Subject) -> None:
        directory = trip.directory / f"proxy{number}"
        command = [trip.criu, "dump", "--stream", "-D", str(directory), "-t", str(subject.pid), "-o", "dump.log"]
        await trip.source.run(*command, "--action-script", str(directory / DUMP_SCRIPT))


@dataclass
class Migrate(Contender):
    """`imgproxy migrate`, all in one command; its own summary goes into the record."""

    name: str = "imgproxy migrate"
    options: tuple[str, ...] = ("--compress", "off")
    cache_options: tuple[str, ...] = ()

    @asynccontextmanager
    async def prepared(self, trip: Trip) -> AsyncIterator[Move]:
        here, journal = trip.make("cache"), trip.make("journal")
        command = ["imgcache", "--allow-restore", "--listen", f"127.0.0.1:{PORT}", "-D", str(here), "--criu", trip.criu]
        await trip.destination.start_service(here / "log", *command, *self.cache_options)

        async def move() -> None:
            pid = str(trip.subjects[0].pid)
            command = ["imgproxy", "migrate", pid, "--to", f"127.0.0.1:{PORT}", "--criu", trip.criu, "--json"]
            said = await trip.source.run(*command, "--journal", str(journal), *self.options)
            events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
            trip.found.update(next(event for event in events if event["event"] == "summary"))

        yield move


class Directory(Contender):
    """`criu dump`, then `criu restore`, through one directory on tmpfs: nothing is sent anywhere."""

    name = "criu, tmpfs directory"

    @asynccontextmanager
    async def prepared(self, trip: Trip) -> AsyncIterator[Move]:
        images = trip.make("images")

        async def move() -> None:
            await dump_to(trip, images)
            await restore_from(trip, images)

        yield move


@dataclass
class Tar(Contender):
    """`criu dump`, tar through a TCP connection of socat's into another directory, `criu restore`."""

    name: str = "criu, tar over socat"
    on_disk: bool = True  #: where people keep directories; else on tmpfs

    @asynccontextmanager
    async def prepared(self, trip: Trip) -> AsyncIterator[Move]:
        images, copy = trip.make("images", on_disk=self.on_disk), trip.make("copy", on_disk=self.on_disk)
        receive = f"set -o pipefail; socat -u TCP-LISTEN:{PORT},reuseaddr STDOUT | tar -C {copy} -x"
        receiver = trip.destination.start(trip.directory / "receiver", "bash", "-c", receive)

        async def move() -> None:
            await dump_to(trip, images)
            send = f"set -o pipefail; tar -C {images} -c . | socat -u STDIN TCP:127.0.0.1:{PORT},{RETRY}"
            await trip.source.run("bash", "-c", send)
            await receiver.wait()
            await restore_from(trip, copy)

        yield move


@dataclass
class Streamer(Contender):
    """criu-image-streamer on both sides, joined by socat."""

    program: str
    name: str = "criu-image-streamer"

    @asynccontextmanager
    async def prepared(self, trip: Trip) -> AsyncIterator[Move]:
        there, here = trip.make("capture"), trip.make("serve")
        address = f"TCP:127.0.0.1:{PORT},{RETRY}"
        serve = f"socat -u TCP-LISTEN:{PORT},reuseaddr STDOUT | '{self.program}' --images-dir {here} serve"
        capture = f"'{self.program}' --images-dir {there} capture | socat -u STDIN {address}"
        trip.destination.start(here / "log", "bash", "-c", serve)
        trip.source.start(there / "log", "bash", "-c", capture)
        await _until_exists(there / "streamer-capture.sock")

        async def move() -> None:
            await dump_to(trip, there, "--stream")
            await _until_exists(here / "streamer-serve.sock")
            await restore_from(trip, here, "--stream")

        yield move


def find_streamer() -> str | None:
    """A criu-image-streamer on PATH that is not this project's own command, which is a script of Python's."""
    program = shutil.which("criu-image-streamer")
    if program is None or Path(program).read_bytes()[:2] == b"#!":
        return None
    return program


async def dump_to(trip: Trip, images: Path, *options: str) -> None:
    """Plain `criu dump`."""
    pid = str(trip.subjects[0].pid)
    await trip.source.run(trip.criu, "dump", "-D", str(images), "-t", pid, "-o", "dump.log", *options)


async def restore_from(trip: Trip, images: Path, *options: str) -> None:
    """Plain `criu restore`."""
    await trip.destination.run(trip.criu, "restore", "-D", str(images), "-d", "-o", "restore.log", *options)


async def _until_restores_wait(directory: Path, count: int) -> None:
    """Until that many sessions of the cache have a restore that waits for its images."""
    await until(lambda: sum(1 for session in _sessions(directory) if session["restore"]) == count, "criu restore waits")


def _sessions(directory: Path) -> list[dict[str, Any]]:
    client = ControlClient(str(directory / CACHE_SOCKET))
    client.ask({"op": "status"})
    answers = list(client.answers())
    client.close()
    return answers


async def _until_exists(path: Path) -> None:
    await until(path.exists, str(path))
