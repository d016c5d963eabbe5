"""Moving bytes between pipes, sockets and files without looking at them."""

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from imgnode import pipes
from imgnode.pipes import PIPE_SIZE, Pipe, Sink
from tests.playbook import filled_pipe, random_bytes, virtual_time

pytestmark = pytest.mark.t1


async def test_a_pipe_is_as_large_as_it_may_be() -> None:
    with filled_pipe() as pipe:
        assert pipe.size == PIPE_SIZE
        assert not os.get_blocking(pipe.reader) and not os.get_blocking(pipe.writer)
        assert not os.get_inheritable(pipe.reader)


async def test_a_closed_pipe_forgets_its_numbers() -> None:
    pipe = Pipe()
    pipe.close_writer()
    assert pipe.writer == -1 and os.read(pipe.reader, 1) == b""
    pipe.close()
    pipe.close()
    assert (pipe.reader, pipe.writer) == (-1, -1)


async def test_what_is_pending_is_known() -> None:
    with filled_pipe(b"12345") as pipe:
        assert pipes.pending(pipe.reader) == 5


async def test_tee_leaves_the_bytes_where_they_are() -> None:
    with filled_pipe(b"12345") as source, filled_pipe() as target:
        assert pipes.tee(source.reader, target.writer, 4) == 4
        assert os.read(target.reader, 9) == b"1234"
        assert os.read(source.reader, 9) == b"12345"
        with pytest.raises(BlockingIOError):
            pipes.tee(source.reader, target.writer, 1)
        with pytest.raises(OSError, match="tee"):
            pipes.tee(-1, target.writer, 1)


async def test_a_sink_drops_exactly_what_it_is_told() -> None:
    sink = Sink()
    with filled_pipe(b"12345") as pipe:
        sink.discard(pipe.reader, 3)
        assert os.read(pipe.reader, 9) == b"45"
        with pytest.raises(BlockingIOError):
            sink.discard(pipe.reader, 1)
    sink.close()
    sink.close()


async def test_a_full_target_is_waited_for() -> None:
    data, received = random_bytes(PIPE_SIZE), bytearray()
    near, far = trio.socket.socketpair()
    with near, far, filled_pipe(data) as pipe:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipes.splice_out, pipe.reader, near.fileno(), len(data))
            while len(received) < len(data):
                received += await far.recv(1 << 20)
    assert received == data


async def test_sending_more_than_there_is_says_so() -> None:
    with filled_pipe(b"abc") as pipe, filled_pipe() as target:
        pipe.close_writer()
        with pytest.raises(BrokenPipeError, match="2 bytes less than announced"):
            await pipes.splice_out(pipe.reader, target.writer, 5)


async def test_splicing_in_waits_and_finds_the_end() -> None:
    near, far = trio.socket.socketpair()
    with near, far, filled_pipe() as pipe:
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def say() -> None:
                await trio.testing.wait_all_tasks_blocked()
                await near.send(b"abc")

            assert await pipes.splice_in(far.fileno(), pipe.writer, 100) == 3
        near.close()
        assert await pipes.splice_in(far.fileno(), pipe.writer, 100) == 0


async def test_a_file_goes_into_a_pipe_from_any_place(tmp_path: Path) -> None:
    data = random_bytes(3 << 20)
    (tmp_path / "file").write_bytes(data)
    received = bytearray()
    with (tmp_path / "file").open("rb") as file, filled_pipe() as pipe:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipes.splice_file, file.fileno(), 1000, len(data) - 2000, pipe.writer)
            while len(received) < len(data) - 2000:
                received += await pipes.read_some(pipe.reader, 1 << 16)
        assert received == data[1000:-1000]


async def test_a_pipe_goes_into_a_file_at_any_place(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("r+b") as file, filled_pipe(b"abc") as pipe:
        pipes.splice_to_file(pipe.reader, file.fileno(), 4, 3)
    assert path.read_bytes() == b"0123abc789"


@pytest.mark.parametrize("before", [b"", b"first "])
async def test_all_that_comes_on_a_socket_goes_into_a_pipe_until_its_end(before: bytes) -> None:
    """Also when the pipe is full, and when nothing comes."""
    data, received = random_bytes(3 * PIPE_SIZE), bytearray()
    near, far = trio.socket.socketpair()
    with near, far, filled_pipe(before) as pipe:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipes.splice_all, far.fileno(), pipe)
            nursery.start_soon(_say_all, near, data)
            await trio.testing.wait_all_tasks_blocked()
            assert pipes.pending(pipe.reader) > len(before), "it fills up although nobody reads"
            while part := await pipes.read_some(pipe.reader, 1 << 20):
                received += part
        assert pipe.writer == -1
    assert received == before + data


async def _say_all(sock: trio.socket.SocketType, data: bytes) -> None:
    """Send in two parts, with a silence between, then close."""
    with sock:
        stream = trio.SocketStream(sock)
        await stream.send_all(data[: PIPE_SIZE // 2])
        await trio.testing.wait_all_tasks_blocked()
        await stream.send_all(data[PIPE_SIZE // 2 :])


async def test_a_file_goes_into_a_socket_from_any_place(tmp_path: Path) -> None:
    data = random_bytes(3 << 20)
    (tmp_path / "file").write_bytes(data)
    received = bytearray()
    near, far = trio.socket.socketpair()
    with near, far, (tmp_path / "file").open("rb") as file:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipes.send_file, file.fileno(), 1000, len(data) - 2000, near.fileno())
            while len(received) < len(data) - 2000:
                received += await far.recv(1 << 16)
        assert received == data[1000:-1000]
        with pytest.raises(BrokenPipeError, match="5 bytes less than announced"):
            await pipes.send_file(file.fileno(), len(data) - 5, 10, near.fileno())


async def test_reading_and_writing_wait() -> None:
    data = random_bytes(3 << 20)
    received = bytearray()
    with filled_pipe() as pipe:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pipes.write_all, pipe.writer, data)
            while len(received) < len(data):
                received += await pipes.read_some(pipe.reader, 1 << 20)
        assert received == data
        pipe.close_writer()
        assert await pipes.read_some(pipe.reader, 1) == b""


@virtual_time
async def test_a_reader_that_went_away_is_an_error() -> None:
    with filled_pipe() as pipe:
        os.close(pipe.reader)
        pipe.reader = -1
        with pytest.raises(BrokenPipeError):
            await pipes.write_all(pipe.writer, b"x")
