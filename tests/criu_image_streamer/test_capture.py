"""Capturing: what the caller is told, and the dumps that are no checkpoint."""

import json
import os
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import wait_all_tasks_blocked

from criu_image_streamer.capture import SOCKET, capture
from imgnode.nursery import flat_nursery
from imgwire.errors import RemoteProtocolError, UsageError
from tests.criu_image_streamer.checkpoint import Told, captured, extracted, files, options, pipes
from tests.fake_criu import FakeDump, connect_dump

pytestmark = pytest.mark.t1


async def test_what_the_caller_is_told(node_dir: Path) -> None:
    path = node_dir / "shard"
    with files([path], os.O_CREAT | os.O_WRONLY) as fds:
        told = await captured(node_dir, fds)
    assert told.lines[:2] == ["socket-init", "checkpoint-start"]
    [shard] = json.loads(told.lines[2])["shards"]
    assert shard["size"] == path.stat().st_size
    assert shard["transfer_duration_millis"] >= 0
    assert not (node_dir / SOCKET).exists()


async def test_the_directory_is_made(node_dir: Path) -> None:
    with files([node_dir / "shard"], os.O_CREAT | os.O_WRONLY) as fds:
        await captured(node_dir / "a" / "b", fds)
    assert (node_dir / "a" / "b").is_dir()


async def test_cpuinfo_is_no_checkpoint_start(node_dir: Path) -> None:
    """`criu cpuinfo dump --stream` sends that image alone and stops nothing."""
    path = node_dir / "shard"
    with files([path], os.O_CREAT | os.O_WRONLY) as fds:
        told = await captured(node_dir, fds, {"cpuinfo.img": b"cpu"})
    assert told.lines[0] == "socket-init" and told.lines[1].startswith("{")
    with files([path], os.O_RDONLY) as fds:
        assert await extracted(node_dir / "out", fds) == {"cpuinfo.img": b"cpu"}


@pytest.mark.parametrize("images", [{}, {"core-1.img": b"c"}])
async def test_a_dump_that_failed(node_dir: Path, images: dict[str, bytes]) -> None:
    with (
        files([node_dir / "shard"], os.O_CREAT | os.O_WRONLY) as fds,
        pytest.raises(RemoteProtocolError, match="ended before its last image"),
    ):
        await captured(node_dir, fds, images)
    assert not (node_dir / SOCKET).exists()


async def with_dump(directory: Path, fds: list[int], does: "dict[str, bytes] | bytes") -> None:
    """A dump that sends `does` as it is, or images of that content one after the other."""
    told = Told()

    async def criu() -> None:
        await told.socket()
        dump: FakeDump = await connect_dump(directory / SOCKET)
        with dump.sock:
            if isinstance(does, bytes):
                await dump.send(does)
            else:
                for name, data in does.items():
                    await dump.image(name, data)

    try:
        async with flat_nursery() as nursery:
            nursery.start_soon(criu)
            await capture(options("capture", directory, fds), told)
    finally:
        structlog.reset_defaults()


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\xff\xff\xff\xff", "a request of 4294967295 bytes"),
        (b"\x06\x00\x00\x00\x0a\x04../a", "'../a' is not made of"),
        (b"\x06\x00\x00", "closed in the middle of a request"),
    ],
)
async def test_a_dump_that_is_none(node_dir: Path, raw: bytes, why: str) -> None:
    with files([node_dir / "shard"], os.O_CREAT | os.O_WRONLY) as fds, pytest.raises(RemoteProtocolError, match=why):
        await with_dump(node_dir, fds, raw)


async def test_an_image_under_the_name_of_an_external_file(node_dir: Path) -> None:
    with (
        files([node_dir / "shard", Path(os.devnull)], os.O_CREAT | os.O_RDWR) as [shard, empty],
        pytest.raises(RemoteProtocolError, match=r"core-1.img: sent twice"),
    ):
        await captured(node_dir, [shard], {"core-1.img": b""}, external={"core-1.img": empty})


async def test_two_captures_in_one_directory(node_dir: Path) -> None:
    with pipes(2) as (_readers, [one, other]):
        told = Told()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(capture, options("capture", node_dir, [one]), told)
            await told.socket()
            with pytest.raises(UsageError, match="another program listens there"):
                await capture(options("capture", node_dir, [other]), Told())
            nursery.cancel_scope.cancel()
    structlog.reset_defaults()
    assert not (node_dir / SOCKET).exists()


async def test_shards_full_and_unread_stop_the_dump(node_dir: Path) -> None:
    """What is under way is bounded by the pipes: nothing is read ahead into memory."""
    taken = 0

    async def dump(told: Told) -> None:
        nonlocal taken
        await told.socket()
        criu = await connect_dump(node_dir / SOCKET)
        with criu.sock:
            pipe = await criu.open("pages-1.img")
            async with pipe:
                for _ in range(1000):
                    await pipe.send_all(bytes(1 << 16))
                    taken += 1 << 16

    told = Told()
    with pipes(2) as (_readers, writers):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dump, told)
            nursery.start_soon(capture, options("capture", node_dir, writers), told)
            await told.socket()
            before = -1
            while before != taken:
                before = taken
                await wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
    structlog.reset_defaults()
    assert 1 << 20 <= taken <= 5 << 20
