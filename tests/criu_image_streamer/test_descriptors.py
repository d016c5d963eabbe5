"""Pipes, sockets, files and devices as shards."""

import os
import pty
import socket
from pathlib import Path

import pytest
import trio

from criu_image_streamer.descriptors import SMALLEST_FRAME, FileSink, FileSource, sinks, sources, write_blocking
from imgcache.arena import Arena, MemoryBudget
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.frames import MAX_DATA
from tests.criu_image_streamer.checkpoint import files, pipes

pytestmark = pytest.mark.t1


async def test_whether_it_blocks_is_put_back() -> None:
    with pipes(1) as ([reader], [writer]):
        with sinks([writer]), sources([reader]):
            assert not os.get_blocking(writer)
            assert not os.get_blocking(reader)
        assert os.get_blocking(writer)
        assert os.get_blocking(reader)


def test_room_follows_what_the_pipe_holds() -> None:
    with pipes(1) as ([_reader], [writer]), sinks([writer]) as [sink]:
        empty = sink.room()
        os.write(writer, bytes(200_000))
        assert sink.room() == empty - 200_000
        os.write(writer, bytes(MAX_DATA))
        assert sink.room() == SMALLEST_FRAME


def test_a_terminal_is_no_shard() -> None:
    controller, terminal = pty.openpty()
    with pytest.raises(UsageError, match="is a terminal"), sinks([terminal]):
        pass
    with pytest.raises(UsageError, match="is no pipe, socket or file"), sources([terminal]):
        pass
    os.close(controller)
    os.close(terminal)


def test_a_descriptor_that_is_not_open() -> None:
    with pipes(1) as ([_reader], [writer]):
        closed = os.dup(writer)
        os.close(closed)
        with pytest.raises(UsageError, match=f"shard descriptor {closed}: Bad file descriptor"), sinks([closed]):
            pass


def test_appending_is_refused(node_dir: Path) -> None:
    with (
        files([node_dir / "f"], os.O_CREAT | os.O_WRONLY | os.O_APPEND) as fds,
        pytest.raises(UsageError, match="open for appending"),
        sinks(fds),
    ):
        pass


async def test_a_file_is_written_from_where_it_stands(node_dir: Path) -> None:
    path = node_dir / "f"
    path.write_bytes(b"before")
    with files([path], os.O_WRONLY) as [fd], pipes(1) as ([reader], [writer]):
        os.lseek(fd, 0, os.SEEK_END)
        os.write(writer, b"through a pipe")
        with sinks([fd]) as [sink]:
            assert isinstance(sink, FileSink)
            await sink.ready()
            await sink.send_all(b" and ")
            await sink.send_pipe(reader, 14)
            with pytest.raises(trio.ClosedResourceError):
                await sink.receive_some(1)
            await sink.aclose()
    assert path.read_bytes() == b"before and through a pipe"


async def test_a_file_is_read_where_it_lies(node_dir: Path) -> None:
    path = node_dir / "f"
    path.write_bytes(b"skipped|head|payload")
    arena = Arena(MemoryBudget(None), None)
    with files([path], os.O_RDONLY) as [fd]:
        os.lseek(fd, 8, os.SEEK_SET)
        with sources([fd]) as [source]:
            assert isinstance(source, FileSource)
            assert await source.receive_some(5) == b"head|"
            extent = await source.take(7, arena)
            assert (extent.fd, extent.offset, extent.length) == (fd, 13, 7)
            assert await source.receive_some(1) == b""
            with pytest.raises(RemoteProtocolError, match="cut off inside a frame"):
                await source.take(1, arena)
            with pytest.raises(trio.ClosedResourceError):
                await source.send_all(b"x")
            await source.aclose()
    assert arena.memory_bytes == 0
    arena.close()


@pytest.mark.parametrize("kind", ["pipe", "socket"])
async def test_a_stream_is_taken_into_the_arena(kind: str) -> None:
    left, right = socket.socketpair() if kind == "socket" else (None, None)
    reader, writer = (right.fileno(), left.fileno()) if left and right else os.pipe()
    arena = Arena(MemoryBudget(None), None)
    with sources([reader]) as [source]:
        assert source.owned
        os.write(writer, b"x" * 5000)
        extent = await source.take(5000, arena)
        assert os.pread(extent.fd, 6000, extent.offset) == b"x" * 5000
        os.write(writer, b"half")
        if left is None:
            os.close(writer)
        else:
            left.close()
        with pytest.raises(RemoteProtocolError, match="cut off inside a frame"):
            await source.take(8, arena)
    arena.close()
    if right is None:
        os.close(reader)
    else:
        right.close()


async def test_writing_waits_for_a_descriptor_that_does_not_block() -> None:
    data = os.urandom(300_000)
    with pipes(1) as ([reader], [writer]):
        os.set_blocking(writer, False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, write_blocking, writer, data)
            got = b""
            while len(got) < len(data):
                got += await trio.to_thread.run_sync(os.read, reader, 1 << 16)
        assert got == data
