"""External files: taken from what the caller has, written to it as they come."""

import os
import socket
from pathlib import Path

import pytest
import trio

from criu_image_streamer.assembly import Assembly
from criu_image_streamer.external import WINDOW, ExternalOutput
from imgcache.arena import Arena, MemoryBudget
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.messages import EndImage, ImagesComplete, OpenImage
from tests.criu_image_streamer.checkpoint import IMAGES, captured, extracted, files, options, pipes, served
from tests.criu_image_streamer.test_assembly import put

pytestmark = pytest.mark.t1

TAR = os.urandom(5_000_000)


async def capture_with(directory: Path, name: str, fd: int, count: int = 2) -> list[Path]:
    paths = [directory / f"shard-{number}" for number in range(count)]
    with files(paths, os.O_CREAT | os.O_WRONLY) as fds:
        told = await captured(directory, fds, external={name: fd})
    assert told.lines[:2] == ["socket-init", "checkpoint-start"]
    return paths


async def send(fd: int, data: bytes) -> None:
    async with trio.lowlevel.FdStream(fd) as stream:
        await stream.send_all(data)


@pytest.mark.parametrize("kind", ["pipe", "file", "socket"])
async def test_taken_along_and_given_back(node_dir: Path, kind: str) -> None:
    source = node_dir / "source.tar"
    source.write_bytes(TAR)
    async with trio.open_nursery() as nursery:
        if kind == "file":
            fd = os.open(source, os.O_RDONLY)
        elif kind == "pipe":
            fd, writer = os.pipe()
            nursery.start_soon(send, writer, TAR)
        else:
            left, right = socket.socketpair()
            fd = left.detach()
            nursery.start_soon(send, right.detach(), TAR)
        paths = await capture_with(node_dir, "fs.tar", fd)
    assert os.get_blocking(fd)
    os.close(fd)

    target = node_dir / "target.tar"
    with files(paths, os.O_RDONLY) as fds:
        got = await served(options("serve", node_dir, fds, {"fs.tar": os.open(target, os.O_CREAT | os.O_WRONLY)}))
    assert got == IMAGES
    assert target.read_bytes() == TAR


async def test_extracted_beside_the_images_if_nobody_takes_it(node_dir: Path) -> None:
    with files([Path(os.devnull)], os.O_RDONLY) as [fd]:
        paths = await capture_with(node_dir, "empty.tar", fd)
    with files(paths, os.O_RDONLY) as fds:
        assert await extracted(node_dir / "out", fds) == IMAGES | {"empty.tar": b""}


async def test_asked_for_and_not_there(node_dir: Path) -> None:
    with files([Path(os.devnull)], os.O_RDONLY) as [fd]:
        paths = await capture_with(node_dir, "a.tar", fd)
    with (
        files(paths, os.O_RDONLY) as fds,
        pipes(1) as ([_reader], [writer]),
        pytest.raises(RemoteProtocolError, match=r"external file b.tar: is not in this checkpoint"),
    ):
        with trio.fail_after(10):
            await extracted(node_dir / "out", fds, {"b.tar": writer})


async def test_reader_gone(node_dir: Path) -> None:
    source = node_dir / "source.tar"
    source.write_bytes(TAR)
    with files([source], os.O_RDONLY) as [fd]:
        paths = await capture_with(node_dir, "fs.tar", fd)
    reader, writer = os.pipe()
    os.close(reader)
    with files(paths, os.O_RDONLY) as fds, pytest.raises(OSError, match=r"external file fs.tar: .*Broken pipe"):
        await extracted(node_dir / "out", fds, {"fs.tar": writer})
    os.close(writer)


def test_descriptor_not_open() -> None:
    with files([Path(os.devnull)], os.O_RDONLY) as [fd]:
        closed = os.dup(fd)
        os.close(closed)
    with pytest.raises(UsageError, match=r"external file fs.tar: .*Bad file descriptor"):
        ExternalOutput("fs.tar", closed)


async def test_a_shard_waits_that_is_too_far_ahead() -> None:
    """The bytes at WINDOW are not stored before those at 0 have been written."""
    arena = Arena(MemoryBudget(None), None)
    with pipes(1) as ([reader], [writer]):
        output = ExternalOutput("fs.tar", writer)
        assembly = Assembly(arena, {"fs.tar": output})
        assembly.open(OpenImage(0, "fs.tar"))
        stored = trio.Event()

        async def ahead() -> None:
            await put(assembly, 0, WINDOW, b"ahead")
            stored.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.run, arena)
            nursery.start_soon(ahead)
            await trio.testing.wait_all_tasks_blocked()
            assert not stored.is_set()
            await put(assembly, 0, 0, b"first")
            await stored.wait()
            assert os.read(reader, 100) == b"first"
            nursery.cancel_scope.cancel()
        with pytest.raises(RemoteProtocolError, match="came twice"):
            await put(assembly, 0, 0, b"first")
    arena.close()


@pytest.mark.parametrize(
    ("end", "why"), [(EndImage(0, 2, None), "more came"), (EndImage(0, 5, b"0" * 16), "digest differs")]
)
async def test_not_what_was_captured(end: EndImage, why: str) -> None:
    arena = Arena(MemoryBudget(None), None)
    with pipes(1) as ([_reader], [writer]):
        output = ExternalOutput("fs.tar", writer)
        assembly = Assembly(arena, {"fs.tar": output})
        assembly.open(OpenImage(0, "fs.tar"))
        await put(assembly, 0, 0, b"first")
        assembly.end(end)
        assembly.complete(ImagesComplete(1, 5))
        with pytest.raises(RemoteProtocolError, match=why):
            await output.run(arena)
    arena.close()
