"""Spreading over shards: by which one is free, and each shard a stream that says all about itself."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest
import trio

from criu_image_streamer.descriptors import sinks
from criu_image_streamer.output import ShardedOutput, ShardLost
from imgnode.nursery import flat_nursery
from imgwire.errors import LocalProtocolError
from imgwire.link import DataEnded, GreetingReceived, LinkConnection, MessageReceived, Role
from imgwire.messages import Abort, EndImage, Hello, ImagesComplete, OpenImage
from tests.criu_image_streamer.checkpoint import pipes

pytestmark = pytest.mark.t1

SESSION = "ab" * 16


@asynccontextmanager
async def output(writers: Sequence[int], began: list[str] | None = None) -> AsyncIterator[ShardedOutput]:
    with sinks(writers) as shards:
        out = ShardedOutput(writers, shards, SESSION, ([] if began is None else began).append)
        async with flat_nursery() as nursery:
            nursery.start_soon(out.run)
            yield out


def meaning(raw: bytes) -> list[object]:
    """What a shard says, data frames as their headers."""
    events = LinkConnection(Role.CACHE).receive_data(raw)
    kept: list[object] = []
    for event in events:
        if isinstance(event, MessageReceived):
            kept.append(event.message)
        elif isinstance(event, GreetingReceived):
            kept.append(event.greeting)
        elif isinstance(event, DataEnded):
            kept.append((event.header.image, event.header.offset, event.header.length))
    return kept


async def test_one_shard_holds_everything_in_order() -> None:
    began: list[str] = []
    with pipes(1) as ([reader], [writer]):
        async with output([writer], began) as out:
            await out.send(OpenImage(0, "core-1.img", True))
            await out.send_bytes(0, 0, b"abc")
            await out.send(EndImage(0, 3, b"d" * 16))
            await out.send(ImagesComplete(1, 3))
            await out.finish()
        assert meaning(os.read(reader, 4096)) == [
            Hello(SESSION, "checkpoint"),
            OpenImage(0, "core-1.img", True),
            (0, 0, 3),
            EndImage(0, 3, b"d" * 16),
            ImagesComplete(1, 3),
        ]
        [figures] = out.figures()
        assert figures.size > 3
    assert began == ["core-1.img"]


async def test_a_slow_shard_gets_little() -> None:
    """Nobody reads the first shard until the end, yet 8 MiB pass by it."""
    total = 8 << 20
    with pipes(3) as (readers, writers):
        got = [bytearray() for _ in readers]

        async def read(number: int) -> None:
            while b"\0" * 100 not in got[number][-200:]:
                part = await trio.to_thread.run_sync(os.read, readers[number], 1 << 20)
                got[number] += part

        async with trio.open_nursery() as nursery:
            async with output(writers) as out:
                for number in (1, 2):
                    nursery.start_soon(read, number)
                await out.send(OpenImage(0, "tmpfs.img"))
                await out.send_bytes(0, 0, b"x" * total)
                nursery.start_soon(read, 0)
                await out.send(EndImage(0, total))
                await out.send(ImagesComplete(1, total))
                await out.finish()
            for writer in writers:
                os.write(writer, bytes(100))
        shards = [meaning(bytes(each[:-100])) for each in got]
        carried = [sum(item[2] for item in shard if isinstance(item, tuple)) for shard in shards]
        assert sum(carried) == total
        assert carried[0] <= 1 << 20
        assert min(carried[1:]) > 1 << 20
        for number, shard in enumerate(shards):
            assert shard[0] == Hello(SESSION, "checkpoint", shard=number, shards=3)
            assert shard[-1] == ImagesComplete(1, total)
            assert shard.count(OpenImage(0, "tmpfs.img")) == 1
        offsets = sorted(item[1] for shard in shards for item in shard if isinstance(item, tuple))
        assert offsets[0] == 0 and len(set(offsets)) == len(offsets)


async def test_a_pipe_is_spliced_and_its_end_noticed() -> None:
    with pipes(2) as ([source, reader], [feeder, writer]):
        os.set_blocking(source, False)
        async with output([writer]) as out:
            await out.send(OpenImage(0, "pages-1.img"))
            with pytest.raises(BlockingIOError):
                await out.send_pipe(0, 0, source)
            os.write(feeder, b"p" * 8192)
            assert await out.send_pipe(0, 0, source) == 8192
            os.dup2(reader, feeder)  # nobody can write any more
            assert await out.send_pipe(0, 8192, source) == 0
            await out.send(EndImage(0, 8192))
            await out.send(ImagesComplete(1, 8192))
            await out.finish()
        assert (0, 0, 8192) in meaning(os.read(reader, 1 << 16))


async def test_a_shard_that_nobody_reads_is_named() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with pytest.raises(ShardLost, match=f"shard descriptor {writer}: .*Broken pipe"):
        async with output([writer]):
            await trio.sleep_forever()
    os.close(writer)


async def test_what_does_not_go_into_a_shard() -> None:
    with pipes(1) as ([_reader], [writer]):
        async with output([writer]) as out:
            with pytest.raises(LocalProtocolError, match="Abort"):
                await out.send(Abort("no"))
            with pytest.raises(LocalProtocolError, match="not compressed here"):
                await out.send_bytes(0, 0, b"zz", raw_length=5)
            await out.send(ImagesComplete(0, 0))
            await out.finish()
        with pytest.raises(LocalProtocolError, match="without its totals"):
            async with output([writer]) as out:
                await out.finish()
