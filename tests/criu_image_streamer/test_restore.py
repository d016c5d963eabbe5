"""Serving and extracting."""

import json
import os
from pathlib import Path

import pytest
import trio

from criu_image_streamer.cli import Options
from criu_image_streamer.restore import SOCKET, serve
from imgnode.nursery import flat_nursery
from imgwire.errors import RemoteProtocolError, UsageError
from tests.criu_image_streamer.checkpoint import (
    IMAGES,
    Told,
    capture_to_files,
    captured,
    extracted,
    files,
    options,
    pipes,
    served,
)
from tests.fake_criu import connect_restore
from transform.errors import TransformError

pytestmark = pytest.mark.t1


@pytest.mark.parametrize("count", [1, 2, 3, 4])
async def test_straight_from_capture_to_restore(node_dir: Path, count: int) -> None:
    """Through pipes that hold far less than the checkpoint, both ends at work at once."""
    source, target = node_dir / "source", node_dir / "target"
    with pipes(count) as (readers, writers):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(captured, source, writers)
            got = await served(options("serve", target, readers[::-1]), [*IMAGES, "absent.img"])
    assert got == IMAGES | {"absent.img": None}
    assert not (target / SOCKET).exists()


async def test_what_the_caller_is_told(node_dir: Path) -> None:
    paths = await capture_to_files(node_dir, 2)
    told = Told()
    with files(paths, os.O_RDONLY) as fds:
        await served(options("serve", node_dir, fds), told=told)
    shards = json.loads(told.lines[0])["shards"]
    assert [shard["size"] for shard in shards] == [path.stat().st_size for path in paths]
    assert told.lines[1:] == ["socket-init"]


async def test_a_shard_that_is_a_file_serves_any_number_of_times(node_dir: Path) -> None:
    paths = await capture_to_files(node_dir, 2)
    before = [path.read_bytes() for path in paths]
    for _ in range(2):
        with files(paths, os.O_RDWR) as fds:
            assert await served(options("serve", node_dir, fds)) == IMAGES
    assert [path.read_bytes() for path in paths] == before


async def test_a_second_restore_finds_nobody(node_dir: Path) -> None:
    paths = await capture_to_files(node_dir, 1)
    told = Told()

    async def two() -> None:
        await told.socket()
        first = await connect_restore(node_dir / SOCKET)
        with first.sock:
            assert await first.image("core-7.img") == IMAGES["core-7.img"]
            with pytest.raises(OSError, match=r"\[Errno 2\]|No such file|Connection refused"):
                await connect_restore(node_dir / SOCKET)

    with files(paths, os.O_RDONLY) as fds:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(two)
            await serve(options("serve", node_dir, fds), told)


async def test_a_restore_that_leaves_in_the_middle(node_dir: Path) -> None:
    paths = await capture_to_files(node_dir, 1)
    told = Told()

    async def leave() -> None:
        await told.socket()
        criu = await connect_restore(node_dir / SOCKET)
        with criu.sock:
            await criu.send(b"\x06\x00")

    with files(paths, os.O_RDONLY) as fds, pytest.raises(RemoteProtocolError, match="in the middle of a request"):
        async with flat_nursery() as nursery:
            nursery.start_soon(leave)
            await serve(options("serve", node_dir, fds), told)


async def test_an_image_that_is_closed_early(node_dir: Path) -> None:
    paths = await capture_to_files(node_dir, 1)
    told = Told()

    async def peek() -> None:
        await told.socket()
        criu = await connect_restore(node_dir / SOCKET)
        with criu.sock:
            pipe = await criu.open("pages-1.img")
            assert pipe is not None
            async with pipe:
                assert IMAGES["pages-1.img"].startswith(await pipe.receive_some(100))
            assert await criu.image("core-7.img") == IMAGES["core-7.img"]

    with files(paths, os.O_RDONLY) as fds:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peek)
            await serve(options("serve", node_dir, fds), told)


async def test_no_port_to_move(node_dir: Path) -> None:
    paths = await capture_to_files(node_dir, 1)
    with files(paths, os.O_RDONLY) as fds, pytest.raises(RemoteProtocolError, match=r"files.img: is not in"):
        await _remapped(node_dir, fds)
    paths = await capture_to_files(node_dir, 1, {"files.img": b"not an image", "inventory.img": b"i"}, "bad")
    with files(paths, os.O_RDONLY) as fds, pytest.raises(TransformError, match=r"files.img"):
        await _remapped(node_dir, fds)


async def _remapped(directory: Path, fds: list[int]) -> None:
    await serve(Options("serve", directory, tuple(fds), {}, 2, ("80:81",)), Told())


async def test_extracted_beside_what_is_there(node_dir: Path) -> None:
    paths = await capture_to_files(node_dir, 2)
    target = node_dir / "target"
    target.mkdir()
    (target / "dump.log").write_bytes(b"log")
    (target / "core-7.img").write_bytes(b"old")
    told = Told()
    with files(paths, os.O_RDONLY) as fds:
        assert await extracted(target, fds, told=told) == IMAGES | {"dump.log": b"log"}
    assert len(told.lines) == 1


async def test_extracted_past_the_memory(node_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("criu_image_streamer.restore.EXTRACT_MEMORY", 1 << 20)
    with pipes(1) as ([reader], [writer]):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(captured, node_dir / "source", [writer])
            assert await extracted(node_dir / "target", [reader]) == IMAGES


async def test_a_file_where_the_socket_goes(node_dir: Path) -> None:
    paths = await capture_to_files(node_dir, 1)
    (node_dir / SOCKET).write_bytes(b"")
    with files(paths, os.O_RDONLY) as fds, pytest.raises(UsageError, match="exists and is not a socket"):
        await serve(options("serve", node_dir, fds), Told())
