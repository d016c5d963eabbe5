"""Reads the shards of one checkpoint, all at once: each says what it is, and must end as it should.

The shards of a checkpoint may be given in any order. Each carries the checkpoint's id, its own number and how many
there are, so that a missing, doubled or foreign one is named before anything is stored.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import trio

from criu_image_streamer.assembly import Assembly
from criu_image_streamer.descriptors import ShardSource, name
from criu_image_streamer.progress import ShardFigures
from imgnode.nursery import flat_nursery
from imgwire.errors import RemoteProtocolError
from imgwire.link import (
    ByeReceived,
    DataStarted,
    Event,
    GreetingReceived,
    LinkConnection,
    MessageReceived,
    Role,
    common_version,
)
from imgwire.messages import EndImage, Hello, ImagesComplete, OpenImage


class ShardReader:
    """One shard."""

    def __init__(self, fd: int, source: ShardSource) -> None:
        self._label, self._source = name(fd), source
        self._connection = LinkConnection(Role.CACHE)
        self._seq = self._size = 0
        self._began = trio.current_time()
        self._seconds = 0.0
        self._told_totals = False
        self.hello: Hello | None = None

    @property
    def figures(self) -> ShardFigures:
        """What it carried."""
        return ShardFigures(self._size, self._seconds)

    async def greet(self) -> None:
        """Read what the shard says of itself."""
        with self._named():
            event = await self._event()
            if not isinstance(event, GreetingReceived) or not isinstance(event.greeting, Hello):
                raise RemoteProtocolError("does not begin as a shard does")
            common_version(event.greeting)
            self.hello = event.greeting

    async def read(self, assembly: Assembly) -> None:
        """Read all of it into `assembly`."""
        with self._named():
            while True:
                event = await self._event()
                if isinstance(event, ByeReceived):
                    self._require_totals()
                    break
                await self._handle(event, assembly)
        self._seconds = trio.current_time() - self._began

    async def _handle(self, event: Event, assembly: Assembly) -> None:
        match event:
            case DataStarted(header):
                self._expect(header.seq)
                await assembly.data(header, self._source)
                self._connection.payload_bypassed(header.length)
                self._size += header.length
            case MessageReceived(seq, OpenImage() as message):
                self._expect(seq)
                assembly.open(message)
            case MessageReceived(seq, EndImage() as message):
                self._expect(seq)
                assembly.end(message)
            case MessageReceived(seq, ImagesComplete() as message):
                self._expect(seq)
                self._told_totals = True
                assembly.complete(message)
            case _:
                raise RemoteProtocolError(f"{type(event).__name__} does not belong into a shard")

    async def _event(self) -> Event:
        while True:
            data = await self._source.receive_some(self._connection.wanted)
            if not data:
                self._connection.receive_eof()
                raise RemoteProtocolError("ends before its end mark: it is empty or cut off")
            self._size += len(data)
            if events := self._connection.receive_data(data):
                return events[0]  # `wanted` never reaches past one

    def _expect(self, seq: int) -> None:
        self._seq += 1
        if seq != self._seq:
            raise RemoteProtocolError(f"frame {seq} comes where {self._seq} is due")

    def _require_totals(self) -> None:
        if not self._told_totals:
            raise RemoteProtocolError("ends without the totals of its checkpoint")

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except RemoteProtocolError as error:
            part = f" (part {self.hello.shard + 1} of {self.hello.shards})" if self.hello else ""
            raise RemoteProtocolError(f"shard {self._label}{part}: byte {self._size}: {error}") from error

    def __str__(self) -> str:
        return f"shard {self._label}"


async def read_shards(fds: Sequence[int], sources: Sequence[ShardSource], assembly: Assembly) -> list[ShardFigures]:
    """Read all shards to their ends; RemoteProtocolError names the one that is wrong, or the part that is missing."""
    readers = [ShardReader(fd, source) for fd, source in zip(fds, sources, strict=True)]
    async with flat_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(reader.greet)
    _check_set(readers)
    async with flat_nursery() as nursery:
        for reader in readers:
            nursery.start_soon(reader.read, assembly)
    return [reader.figures for reader in readers]


def _check_set(readers: Sequence[ShardReader]) -> None:
    first = readers[0]
    parts: dict[int, ShardReader] = {}
    for reader in readers:
        assert first.hello is not None and reader.hello is not None
        if (reader.hello.session, reader.hello.shards) != (first.hello.session, first.hello.shards):
            raise RemoteProtocolError(f"{first} and {reader}: are of different checkpoints; give those of one")
        if reader.hello.shard in parts:
            raise RemoteProtocolError(f"{parts[reader.hello.shard]} and {reader}: are the same part of the checkpoint")
        parts[reader.hello.shard] = reader
    assert first.hello is not None
    missing = [str(part + 1) for part in range(first.hello.shards) if part not in parts]
    if missing:
        raise RemoteProtocolError(
            f"the checkpoint has {first.hello.shards} shards, part {', '.join(missing)} is missing; give all of them"
        )
