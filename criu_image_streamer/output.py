"""Spreads the images of a dump over the shards: the capture side's `Outgoing`.

One task per shard. It takes the next frame only once its shard takes bytes, so frames go to whichever shard is free and
a slow one gets few of them; nobody decides. A frame is as long as the shard has room for, so that its writer seldom
waits in the middle of it.

Each shard is a stream of its own that says all about itself: a hello (which part of which checkpoint), numbered frames,
the totals of the whole checkpoint, a bye. An image is opened in every shard that carries some of it, so no shard waits
for another, neither here nor where they are read.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from criu_image_streamer.descriptors import ShardSink, name
from criu_image_streamer.progress import ShardFigures
from imgnode.nursery import flat_nursery
from imgproxy.outgoing import readable_size
from imgwire import messages
from imgwire.errors import LocalProtocolError
from imgwire.frames import HEADER_SIZE, MAX_DATA, FrameType, Header


class ShardLost(OSError):
    """A shard takes no more bytes; the text says which and why."""


class ShardWriter:
    """Puts frames into one shard."""

    def __init__(self, fd: int, sink: ShardSink, *, alone: bool) -> None:
        self._label, self._sink, self._alone = name(fd), sink, alone
        self._opened: set[int] = set()
        self._seq = 0
        self.size = 0

    def room(self) -> int:
        """How many bytes the next frame may carry. With nowhere else to go they may as well wait here."""
        return MAX_DATA if self._alone else min(MAX_DATA, self._sink.room())

    async def ready(self) -> None:
        """Wait until the shard takes bytes."""
        await self._sink.ready()

    async def open(self, image: messages.OpenImage) -> None:
        """Say what `image` is, unless that was said here."""
        if image.image not in self._opened:
            self._opened.add(image.image)
            await self.message(image)

    async def greet(self, hello: messages.Hello) -> None:
        """The first frame."""
        payload = messages.encode(hello)
        await self._put(Header(FrameType.HELLO, len(payload)), payload)

    async def message(self, message: messages.Message) -> None:
        """A control frame."""
        payload = messages.encode(message)
        await self._put(Header(FrameType.CONTROL, len(payload), self._next()), payload)

    async def data(self, image: int, offset: int, data: bytes | memoryview) -> None:
        """A frame of image bytes."""
        await self._put(Header(FrameType.DATA, len(data), self._next(), 0, image, offset, len(data)), data)

    async def pipe(self, image: int, offset: int, fd: int, size: int) -> None:
        """A frame of `size` image bytes that are in the pipe `fd`."""
        await self._put(Header(FrameType.DATA, size, self._next(), 0, image, offset, size), b"", fd)

    async def bye(self) -> None:
        """The last frame."""
        await self._put(Header(FrameType.BYE), b"")

    async def _put(self, header: Header, payload: bytes | memoryview, fd: int | None = None) -> None:
        try:
            await self._sink.send_all(header.encode() + payload, more=fd is not None)
            if fd is not None:
                await self._sink.send_pipe(fd, header.length)
        except (trio.BrokenResourceError, OSError) as error:
            raise ShardLost(f"shard {self._label}: {error}; does its reader still run?") from error
        self.size += HEADER_SIZE + header.length

    def _next(self) -> int:
        self._seq += 1
        return self._seq


@dataclass
class _Job:
    """Something for one shard, whichever it is. `write` returns how many bytes it took along."""

    image: messages.OpenImage
    write: Callable[[ShardWriter], Awaitable[int]]
    taken: int = 0
    done: trio.Event = field(default_factory=trio.Event)


class ShardedOutput:
    """All shards of one checkpoint. `on_image` is told the name of each image as it begins."""

    splices = True
    bytes_sent = 0
    busy_time = 0.0

    def __init__(
        self, fds: Sequence[int], shards: Sequence[ShardSink], session: str, on_image: Callable[[str], None]
    ) -> None:
        self._writers = [ShardWriter(fd, sink, alone=len(fds) == 1) for fd, sink in zip(fds, shards, strict=True)]
        self._session, self._on_image = session, on_image
        self._open: dict[int, messages.OpenImage] = {}
        self._totals: messages.ImagesComplete | None = None
        self._give_in, self._give_out = trio.open_memory_channel[_Job](0)
        self.started = trio.current_time()

    async def run(self) -> None:
        """Write the shards, until `finish`."""
        async with flat_nursery() as nursery:
            for number, writer in enumerate(self._writers):
                hello = messages.Hello(self._session, "checkpoint", shard=number, shards=len(self._writers))
                nursery.start_soon(self._write_shard, writer, hello)

    async def finish(self) -> None:
        """Nothing more comes: `run` writes the ends of the shards and returns."""
        await self._give_in.aclose()

    def figures(self) -> list[ShardFigures]:
        """What each shard was given, and since the checkpoint's start."""
        seconds = trio.current_time() - self.started
        return [ShardFigures(writer.size, seconds) for writer in self._writers]

    # ---- Outgoing ----

    async def send(self, message: messages.Message) -> None:
        """The begin and end of images, and of all."""
        match message:
            case messages.OpenImage(number, image):
                await trio.lowlevel.checkpoint()
                self._open[number] = message
                self._on_image(image)
            case messages.EndImage(number):
                await self._give(number, lambda writer: _nothing(writer.message(message)))
                del self._open[number]
            case messages.ImagesComplete():
                self._totals = message
            case _:
                raise LocalProtocolError(f"{type(message).__name__} does not go into a shard")

    async def send_bytes(self, image: int, offset: int, data: bytes, *, raw_length: int | None = None) -> None:
        """Image bytes, in as many frames as the shards have room for."""
        if raw_length is not None:
            raise LocalProtocolError("shards are not compressed here: that is for the program behind the pipe")
        view, sent = memoryview(data), 0

        async def write(writer: ShardWriter) -> int:
            part = view[sent : sent + writer.room()]
            await writer.data(image, offset + sent, part)
            return len(part)

        while sent < len(view):
            sent += await self._give(image, write)

    async def send_pipe(self, image: int, offset: int, fd: int) -> int:
        """What is in the pipe `fd`, one frame at most; its size, 0 at the pipe's end. BlockingIOError if empty."""
        if not readable_size(fd):
            return 0

        async def write(writer: ShardWriter) -> int:
            size = min(readable_size(fd), writer.room())
            await writer.pipe(image, offset, fd, size)
            return size

        return await self._give(image, write)

    async def _give(self, image: int, write: Callable[[ShardWriter], Awaitable[int]]) -> int:
        job = _Job(self._open[image], write)
        await self._give_in.send(job)
        await job.done.wait()
        return job.taken

    async def _write_shard(self, writer: ShardWriter, hello: messages.Hello) -> None:
        await writer.greet(hello)
        await writer.ready()
        async for job in self._give_out:
            await writer.open(job.image)
            job.taken = await job.write(writer)
            job.done.set()
            await writer.ready()
        if self._totals is None:
            raise LocalProtocolError("the output was finished without its totals")
        await writer.message(self._totals)
        await writer.bye()


async def _nothing(sending: Awaitable[None]) -> int:
    await sending
    return 0
