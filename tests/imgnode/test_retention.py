"""What is kept of a frame can be sent as often as needed, and its pipe is used again."""

import os
from collections.abc import AsyncIterator

import pytest

from imgnode.pipes import PIPE_SIZE, Pipe, pending
from imgnode.retention import Retention
from tests.playbook import filled_pipe, random_bytes

pytestmark = pytest.mark.t1


@pytest.fixture
async def retention() -> AsyncIterator[Retention]:
    made = Retention()
    yield made
    made.close()


async def test_what_is_held_can_be_copied_again_and_again(retention: Retention) -> None:
    data = random_bytes(700_000)
    with filled_pipe(data) as source, filled_pipe() as scratch:
        kept = retention.hold(source.reader, PIPE_SIZE)
        assert kept.size == len(data) and pending(source.reader) == 0
        for _ in range(3):
            retention.copy_into(kept, scratch)
            assert os.read(scratch.reader, PIPE_SIZE) == data
        retention.release(kept)


async def test_no_more_is_held_than_asked_for(retention: Retention) -> None:
    with filled_pipe(b"abcdef") as source, filled_pipe() as scratch:
        first = retention.hold(source.reader, 4)
        second = retention.hold(source.reader, 4)
        assert (first.size, second.size) == (4, 2) and first.pipe is not second.pipe
        retention.copy_into(second, scratch)
        assert os.read(scratch.reader, 9) == b"ef"


async def test_a_released_pipe_is_empty_and_used_again(retention: Retention) -> None:
    with filled_pipe(b"abc") as source:
        kept = retention.hold(source.reader, 9)
        retention.release(kept)
        assert os.write(source.writer, b"de") == 2
        again = retention.hold(source.reader, 9)
        assert again.pipe is kept.pipe and pending(again.pipe.reader) == 2


async def test_an_empty_pipe_blocks_and_an_ended_one_gives_nothing(retention: Retention) -> None:
    with filled_pipe() as source:
        with pytest.raises(BlockingIOError):
            retention.hold(source.reader, 9)
        source.close_writer()
        nothing = retention.hold(source.reader, 9)
        assert nothing.size == 0
        retention.release(nothing)


async def test_a_copy_that_has_no_room_is_told(retention: Retention) -> None:
    with filled_pipe(random_bytes(10_000)) as source:
        kept = retention.hold(source.reader, 10_000)
        small = Pipe(4096)
        assert not retention.copy_into(kept, small)
        assert not retention.copy_into(kept, small), "full already"
        small.close()


async def test_held_pipes_are_no_larger_than_the_limit() -> None:
    retention = Retention(8192)
    with filled_pipe(random_bytes(100_000)) as source:
        assert retention.hold(source.reader, 100_000).pipe.size == 8192
    retention.close()


async def test_bytes_need_no_pipe(retention: Retention) -> None:
    retention.release(b"abc")
    retention.close()
    retention.close()
