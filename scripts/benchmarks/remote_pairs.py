"""The original `criu --remote`, through the original image-proxy and image-cache or through ours.

The client is the same for all: `criu restore --remote` waits at the destination when `criu dump --remote` starts. It
finds the sockets in its working directory, whose name (".") is the snapshot's id on both sides.
"""

import time
from abc import abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from imgcache.hook import SCRIPT as RESTORE_SCRIPT
from imgcache.serve.remote import SOCKET as CACHE_SOCKET
from imgnode.nursery import flat_nursery
from imgproxy.hook import SCRIPT as DUMP_SCRIPT
from imgproxy.ingest.remote import SOCKET as PROXY_SOCKET
from scripts.benchmarks.contenders import PORT, Contender, Move, Trip
from scripts.benchmarks.nodes import CommandFailed, Program, status_bytes, until
from scripts.benchmarks.resources import LOOK, memfd_bytes

#: What is found out about memory, in bytes: resident when ready, the most since, and the most in memfds, which count in
#: no process's resident memory.
MEMORY_FOUND = [f"{program}_{what}" for program in ("proxy", "cache") for what in ("start", "peak", "memfds")]

#: Seconds for the original programs to listen and to connect.
PATIENCE = 30.0
#: States in /proc/net/tcp and /proc/net/unix.
_LISTENS, _CONNECTED = "0A", "03"


@dataclass
class Pair(Contender):
    """A proxy and a cache between dump and restore.

    Found out: `restored`, the seconds from dump start to the end of `criu restore -d`, and `MEMORY_FOUND`.
    """

    name: str
    scripts: bool = False  #: both action scripts

    @asynccontextmanager
    async def prepared(self, trip: Trip) -> AsyncIterator[Move]:
        there, here = trip.make("proxy"), trip.make("cache")
        proxy, cache = await self.start(trip, there, here)
        dump = self._criu(trip, there, "dump", DUMP_SCRIPT, "-t", str(trip.subjects[0].pid))
        restore = trip.destination.start(here / "said.log", *self._criu(trip, here, "restore", RESTORE_SCRIPT, "-d"))
        await until(_restore_waits, "criu restore waits", PATIENCE)

        async def restored() -> None:
            await restore.wait()
            trip.found["restored"] = time.time() - trip.dump_started

        async def move() -> None:
            async with flat_nursery() as watching:
                watching.start_soon(_watch, trip, {"proxy": proxy, "cache": cache})
                async with flat_nursery() as running:
                    running.start_soon(trip.source.run, *dump)
                    running.start_soon(restored)
                watching.cancel_scope.cancel()

        yield move
        for program in self.ending(proxy, cache):
            await program.wait()

    def _criu(self, trip: Trip, directory: Path, verb: str, script: str, *options: str) -> list[str]:
        command = ["env", "-C", str(directory), trip.criu, verb, "--remote", "-D", ".", "-o", f"{verb}.log", *options]
        return [*command, *(["--action-script", str(directory / script)] if self.scripts else [])]

    @abstractmethod
    async def start(self, trip: Trip, there: Path, here: Path) -> tuple[Program, Program]:
        """Start proxy and cache in these directories and wait until they are ready."""

    @abstractmethod
    def ending(self, proxy: Program, cache: Program) -> tuple[Program, ...]:
        """Those that end by themselves after a migration."""


@dataclass
class OriginalPair(Pair):
    """`criu image-proxy` and `criu image-cache`."""

    name: str = "original pair"

    async def start(self, trip: Trip, there: Path, here: Path) -> tuple[Program, Program]:
        """The cache waits for the proxy to connect, and then makes its socket."""
        link = ["--port", str(PORT), "-D", "."]
        words = ["env", "-C", str(here), trip.criu, "image-cache", *link, "-o", "cache.log"]
        cache = trip.destination.start(here / "log", *words)
        await until(_cache_listens, "image-cache listens", PATIENCE)
        words = ["env", "-C", str(there), trip.criu, "image-proxy", "--address", "127.0.0.1", *link, "-o", "proxy.log"]
        proxy = trip.source.start(there / "log", *words)
        for path in (there / PROXY_SOCKET, here / CACHE_SOCKET):
            await until(path.exists, str(path), PATIENCE)
        for program in (proxy, cache):
            program.note_start()
        return proxy, cache

    def ending(self, proxy: Program, cache: Program) -> tuple[Program, ...]:
        """Both serve one migration."""
        return proxy, cache


@dataclass
class OurPair(Pair):
    """`imgproxy --remote` and `imgcache --remote`."""

    async def start(self, trip: Trip, there: Path, here: Path) -> tuple[Program, Program]:
        """Plain, as the original pair is."""
        link = f"127.0.0.1:{PORT}"
        words = ["imgcache", "--remote", "--listen", link, "-D", str(here)]
        cache = await trip.destination.start_service(here / "log", *words)
        words = ["imgproxy", "--remote", "--to", link, "-D", str(there), "--compress", "off"]
        return await trip.source.start_service(there / "log", *words), cache

    def ending(self, proxy: Program, cache: Program) -> tuple[Program, ...]:
        """The cache stays for others."""
        return (proxy,)


async def _watch(trip: Trip, programs: dict[str, Program]) -> None:
    """Note the most that each program holds, until cancelled."""
    for name, program in programs.items():
        trip.found.update({f"{name}_start": program.at_start.peak, f"{name}_peak": 0, f"{name}_memfds": 0})
    while True:
        for name, program in programs.items():
            peak, memfds = held(program.pid)
            trip.found[f"{name}_peak"] = max(trip.found[f"{name}_peak"], peak)
            trip.found[f"{name}_memfds"] = max(trip.found[f"{name}_memfds"], memfds)
        await trio.sleep(LOOK)


def held(pid: int) -> tuple[int, int]:
    """The peak of a process's resident memory, and what its memfds hold now, in bytes; nothing once it has ended."""
    try:
        return status_bytes(pid, "VmHWM"), memfd_bytes(pid)
    except (FileNotFoundError, ProcessLookupError, CommandFailed):
        return 0, 0


def _cache_listens() -> bool:
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return any(words[1].endswith(f":{PORT:04X}") and words[3] == _LISTENS for words in lines)


def _restore_waits() -> bool:
    """Whether it has connected to the cache, the only client that does so before a dump."""
    lines = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(words[-1].endswith(CACHE_SOCKET) and words[5] == _CONNECTED for words in lines)
