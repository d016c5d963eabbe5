"""Moves pages of one image out of a pipe and onto the link: by splice, or in chunks that are compressed or copied.

Which of these is asked again for each portion: compression can become worth its while, or not, in the middle of an
image. Memory is bounded whatever the size of an image: a few chunks.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from imgnode.metrics import Counter, Metrics
from imgnode.nursery import flat_nursery
from imgnode.pipes import read_some
from imgproxy.compression import THREADS, Compression
from imgproxy.outgoing import Outgoing
from imgwire.frames import MAX_DATA


@dataclass
class SentImage:
    """An image that has gone out, or is on its way."""

    name: str
    number: int
    counter: Counter
    size: int = 0
    sent: int = 0  #: bytes of it that went out: less than `size` where the cache had pages, or zstd made them smaller


@dataclass
class Packed:
    """A chunk in the compressor, in the order of the image."""

    raw: bytes
    data: bytes | None = None
    done: trio.Event = field(default_factory=trio.Event)


class PagePump:
    """`count` is told each portion that is on its way: the image, and bytes of it."""

    def __init__(
        self, out: Outgoing, compression: Compression, metrics: Metrics, count: Callable[[SentImage, int], None]
    ) -> None:
        self._out, self._compression, self._metrics, self._count = out, compression, metrics, count
        self._limiter = trio.CapacityLimiter(THREADS)

    async def pump(self, image: SentImage, fd: int) -> None:
        """Until the end of the pipe `fd`."""
        more = True
        while more:
            if self._compression.wanted:
                more = await self._pump_compressed(image, fd)
            elif self._out.splices:
                more = await self._splice_once(image, fd)
            else:
                more = await self._copy_once(image, fd)

    async def _splice_once(self, image: SentImage, fd: int) -> bool:
        try:
            size = await self._out.send_pipe(image.number, image.size, fd)
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)
            return True
        self._count(image, size)
        await trio.lowlevel.checkpoint()  # the only one, if neither pipe nor socket makes us wait
        return size > 0

    async def _copy_once(self, image: SentImage, fd: int) -> bool:
        data = await read_some(fd, MAX_DATA)
        if data:
            await self._out.send_bytes(image.number, image.size, data)
            self._count(image, len(data))
        return bool(data)

    async def _pump_compressed(self, image: SentImage, fd: int) -> bool:
        """Compress while it is wanted, a few chunks ahead of sending; False at the end of the image."""
        entry, exit_ = trio.open_memory_channel[Packed](THREADS)
        at_end = False
        async with flat_nursery() as nursery:
            nursery.start_soon(self._send_packed, image, exit_)
            async with entry:
                while self._compression.wanted:
                    raw = await read_some(fd, MAX_DATA)
                    if not raw:
                        at_end = True
                        break
                    chunk = Packed(raw)
                    nursery.start_soon(self._pack, chunk)
                    await entry.send(chunk)
        return not at_end

    async def _pack(self, chunk: Packed) -> None:
        chunk.data = await trio.to_thread.run_sync(self._compression.compress, chunk.raw, limiter=self._limiter)
        chunk.done.set()

    async def _send_packed(self, image: SentImage, chunks: "trio.MemoryReceiveChannel[Packed]") -> None:
        async for chunk in chunks:
            await chunk.done.wait()
            if chunk.data is None:
                await self._out.send_bytes(image.number, image.size, chunk.raw)
            else:
                await self._out.send_bytes(image.number, image.size, chunk.data, raw_length=len(chunk.raw))
            self._metrics.zstd_bytes.labels("in").inc(len(chunk.raw))
            self._metrics.zstd_bytes.labels("out").inc(len(chunk.data or chunk.raw))
            self._count(image, len(chunk.raw))
            image.sent -= len(chunk.raw) - len(chunk.data or chunk.raw)
