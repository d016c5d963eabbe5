"""A small checkpoint, captured and read back inside a test: the code under test against the fake CRIU."""

import os
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import structlog
import trio

from criu_image_streamer.capture import SOCKET as CAPTURE_SOCKET
from criu_image_streamer.capture import capture
from criu_image_streamer.cli import Options
from criu_image_streamer.progress import SOCKET_READY, Progress
from criu_image_streamer.restore import SOCKET as SERVE_SOCKET
from criu_image_streamer.restore import extract, serve
from imgnode.nursery import flat_nursery
from tests.fake_criu import connect_dump, connect_restore

_random = random.Random(2)
IMAGES = {
    "pages-1.img": _random.randbytes(3_000_001),
    "core-7.img": _random.randbytes(1889),
    "tmpfs-dev-39.tar.gz.img": _random.randbytes(1_500_000),
    "pages-2.img": b"",
    "inventory.img": _random.randbytes(86),
}


def options(operation: str, directory: Path, fds: Sequence[int], external: Mapping[str, int] | None = None) -> Options:
    return Options(operation, directory, tuple(fds), dict(external or {}), 2, ())


class Told(Progress):
    """Keeps what is told, and lets a test wait for it."""

    def __init__(self) -> None:
        super().__init__(2)
        self.lines: list[str] = []
        self._ready = trio.Event()

    def say(self, line: str) -> None:
        self.lines.append(line)
        if line == SOCKET_READY:
            self._ready.set()

    async def socket(self) -> None:
        """Wait until CRIU may connect."""
        with trio.fail_after(10):
            await self._ready.wait()


@contextmanager
def pipes(count: int) -> Iterator[tuple[list[int], list[int]]]:
    """Readers and writers. What a test closes itself it must not leave in the list."""
    made = [os.pipe() for _ in range(count)]
    readers, writers = [reader for reader, _ in made], [writer for _, writer in made]
    try:
        yield readers, writers
    finally:
        for fd in [*readers, *writers]:
            os.close(fd)


@contextmanager
def files(paths: Sequence[Path], flags: int) -> Iterator[list[int]]:
    """The paths open as descriptors."""
    with ExitStack() as opened:
        fds = [os.open(path, flags | os.O_CLOEXEC, 0o600) for path in paths]
        for fd in fds:
            opened.callback(os.close, fd)
        yield fds


async def dump(directory: Path, told: Told, images: Mapping[str, bytes]) -> None:
    """What `criu dump` does: several images open at once."""
    await told.socket()
    criu = await connect_dump(directory / CAPTURE_SOCKET)
    with criu.sock:
        async with trio.open_nursery() as nursery:
            for name, data in images.items():
                nursery.start_soon(_write, await criu.open(name), data)


async def _write(pipe: trio.lowlevel.FdStream, data: bytes) -> None:
    async with pipe:
        await pipe.send_all(data)


async def captured(
    directory: Path, fds: Sequence[int], images: Mapping[str, bytes] = IMAGES, external: Mapping[str, int] | None = None
) -> Told:
    """Capture `images` into the shards `fds`."""
    told = Told()
    try:
        async with flat_nursery() as nursery:
            nursery.start_soon(dump, directory, told, images)
            await capture(options("capture", directory, fds, external), told)
    finally:
        structlog.reset_defaults()
    return told


async def restored(directory: Path, told: Told, names: Iterable[str]) -> dict[str, bytes | None]:
    """What `criu restore` gets of the images `names`."""
    await told.socket()
    criu = await connect_restore(directory / SERVE_SOCKET)
    with criu.sock:
        return {name: await criu.image(name) for name in names}


async def served(given: Options, names: Iterable[str] = IMAGES, told: Told | None = None) -> dict[str, bytes | None]:
    """Serve as `given` says, and restore `names`."""
    told, got = told or Told(), {}

    async def restore() -> None:
        got.update(await restored(given.images_dir, told, names))

    async with flat_nursery() as nursery:
        nursery.start_soon(restore)
        await serve(given, told)
    return got


async def extracted(
    directory: Path, fds: Sequence[int], external: Mapping[str, int] | None = None, told: Told | None = None
) -> dict[str, bytes]:
    """Extract into `directory`; what is there then."""
    await extract(options("extract", directory, fds, external), told or Told())
    return {path.name: path.read_bytes() for path in directory.iterdir()}


async def capture_to_files(
    directory: Path, count: int, images: Mapping[str, bytes] = IMAGES, name: str = "shard"
) -> list[Path]:
    """A checkpoint in `count` files."""
    paths = [directory / f"{name}-{number}" for number in range(count)]
    with files(paths, os.O_CREAT | os.O_WRONLY) as fds:
        await captured(directory, fds, images)
    return paths
