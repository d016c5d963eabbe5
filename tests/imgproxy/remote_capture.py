"""A `RemoteIngest` that listens for a fake `criu --remote`, and keeps what it sends on, apart by its round.

In most tests the CRIU is this process; where it must die, be another one or be seen to dump a tree, it is a process of
its own.
"""

import os
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.lowlevel import FdStream

from imgnode.nursery import flat_nursery
from imgnode.unix import listening
from imgproxy.compression import Compression
from imgproxy.ingest.remote import RemoteIngest
from imgproxy.page_pump import SentImage
from imgproxy.sender import ImageSender
from imgwire.messages import BeginRound, DropRound, EndImage, OpenImage
from tests.fake_remote_criu import PROXY, RemoteCriu, body, command
from tests.playbook import MemoryOutgoing, random_bytes
from transform.chain import Chain

VARIANTS = pytest.mark.parametrize("variant", ["pipe", "nopipe"])
PAGES = random_bytes(3_000_000)
Images = dict[str, bytes]

#: What a pre-dump writes, which is a process of its own, and its sizes.
PRE_DUMP_SIZES = {"pagemap-7.img": 100, "pages-1.img": 3_000_000, "inventory.img": 50}
PRE_DUMP: Images = {name: body(name, size) for name, size in PRE_DUMP_SIZES.items()}
DUMP: Images = {
    "seccomp.img": b"s",
    "pagemap-7.img": b"M" * 200,
    "pages-1.img": PAGES[::-1],
    "core-7.img": b"c" * 5000,
    "files.img": b"",
    "inventory.img": b"I",
}


class Rounds(MemoryOutgoing):
    """Keeps images apart by their round."""

    @property
    def rounds(self) -> list[tuple[str, Images]]:
        """Those that were not dropped: id and images that have ended."""
        begun: dict[int, tuple[str, Images]] = {}
        names: dict[int, tuple[int, str]] = {}
        for message in self.messages:
            match message:
                case BeginRound(number, snapshot):
                    begun[number] = (snapshot, {})
                case DropRound(number):
                    del begun[number]
                case OpenImage(image, name, _, number):
                    names[image] = (number, name)
                case EndImage(image):
                    number, name = names[image]
                    begun[number][1][name] = self._images.get(image, b"")
        return list(begun.values())

    async def read_back(self, image: SentImage, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._images[image.number][offset : offset + length]


class Capture:
    """An ingest that waits for `criu --remote` on a socket."""

    def __init__(self, directory: Path, *, insists: bool = False, chain: Chain | None = None) -> None:
        self.directory = directory
        self.out = Rounds()
        self.announced: set[int] = set()
        chain = chain or Chain([])
        self.sender = ImageSender(self.out, chain, Compression("off"))
        self.ingest = RemoteIngest(
            self.sender, lambda dump: chain if dump else Chain([]), self.out.read_back, self._change, insists=insists
        )
        self.ended = trio.Event()
        self._changed = trio.Condition()
        self._nursery: trio.Nursery | None = None

    def criu(self, snapshot: str, variant: str = "pipe") -> RemoteCriu:
        return RemoteCriu(PROXY, self.directory, snapshot, variant)

    def _change(self) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._tell)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until_complete(self) -> None:
        async with self._changed:
            while not self.ingest.complete:
                await self._changed.wait()

    async def run(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        try:
            await self.ingest.accept(listener, self.announced.__contains__)
        finally:
            self._nursery = None
            self.ended.set()

    async def process(self, verb: str, snapshot: str, *steps: str, options: tuple[object, ...] = ()) -> trio.Process:
        """A CRIU of its own, which has come to its step `hold`."""
        words = command(verb, self.directory, snapshot, *steps, options=options)
        process = await trio.lowlevel.open_process(words, stdin=-1, stdout=-1)
        await says(process, "holds")
        return process


async def says(process: trio.Process, wanted: str) -> str:
    """Read what a process says until this comes."""
    assert process.stdout is not None
    told = b""
    while wanted.encode() not in told:
        part = await process.stdout.receive_some(1000)
        assert part, f"it ended without {wanted!r}: {told!r}"
        told += part
    return told.decode()


async def go_on(process: trio.Process) -> None:
    assert process.stdin is not None
    await process.stdin.send_all(b"\n")


def run_at_once(words: list[str]) -> None:
    """Run a CRIU to its end before anybody in this process hears of it."""
    subprocess.run(words, check=True)


def end_at_once(process: trio.Process) -> None:
    """Let it go on to its end, before anybody in this process hears of it."""
    assert isinstance(process.stdin, FdStream)
    os.write(process.stdin.fileno(), b"\n")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


def kill_at_once(process: trio.Process) -> None:
    """Kill it, and see it dead, before anybody in this process hears of it."""
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


async def bury(process: trio.Process, *, kill: bool = True) -> None:
    """See its end, forced or not."""
    if kill:
        process.kill()
    code = await process.wait()
    assert code == (-signal.SIGKILL if kill else 0)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        await pipe.aclose()


@asynccontextmanager
async def capturing(directory: Path, *, insists: bool = False, chain: Chain | None = None) -> AsyncIterator[Capture]:
    """What the ingest raises comes out here; it must have ended when the block does."""
    capture = Capture(directory, insists=insists, chain=chain)
    with trio.fail_after(20):
        async with listening(directory / PROXY) as listener, flat_nursery() as nursery:
            nursery.start_soon(capture.run, listener, nursery)
            yield capture


async def pre_dump(capture: Capture, snapshot: str, variant: str = "pipe") -> None:
    """A whole pre-dump."""
    steps = ["push", "ids", *(f"image:{name}:{size}" for name, size in PRE_DUMP_SIZES.items())]
    words = command("predump", capture.directory, snapshot, *steps, options=variant_option(variant))
    done = await trio.run_process(words, capture_stdout=True)
    assert done.stdout.decode().split() == ["ids", snapshot], "only the last: it would look for a parent, and fail"


def variant_option(variant: str) -> tuple[str, ...]:
    return ("--nopipe",) if variant == "nopipe" else ()


async def run(criu: RemoteCriu, images: Images) -> None:
    """A dump from its push to its last image."""
    await criu.push()
    assert await criu.ids() == [criu.snapshot]
    for name, data in images.items():
        await criu.image(name, data)
