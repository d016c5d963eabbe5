"""Sends a migration's images, round by round: pages straight through, small images through the transforms, the end.

Pages go through page_pump.py, which keeps a chunk or three of them in memory; with `dedup` through page_sender.py,
which sends none that the cache has. Only images that a transform wants are collected.

A round is a pre-dump or the dump. Without pre-dumps there is one, which nobody need begin.
"""

import collections
import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import structlog
import trio
import xxhash

from imgnode.metrics import Metrics
from imgnode.pipes import enlarge, read_some
from imgproxy.compression import Compression
from imgproxy.outgoing import Outgoing
from imgproxy.page_pump import PagePump, SentImage
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.frames import MAX_DATA
from imgwire.messages import BeginRound, DropRound, EndImage, ImagesComplete, MemoryFollows, OpenImage
from imgwire.names import image_kind, is_pages
from transform.chain import COLLECTED_LIMIT, Chain
from transform.errors import TransformError
from transform.extents import Pagemap
from transform.memory import EarlierRound, PageStore

if TYPE_CHECKING:
    from imgproxy.dedup import PageCounts, Scanned
    from imgproxy.page_sender import PageSender

_log = structlog.get_logger()

#: What pages that follow the process count as, among the images.
MEMORY = "pages-following.img"


class ImageSender:
    """The images of one migration on their way out."""

    def __init__(
        self,
        out: Outgoing,
        chain: Chain,
        compression: Compression,
        *,
        digest_pages: bool = False,
        dedup: bool = False,
        metrics: Metrics | None = None,
    ) -> None:
        self._metrics = metrics or Metrics()
        self._rounds: dict[int, dict[str, SentImage]] = {0: {}}
        self._pagemaps: dict[int, dict[str, Pagemap]] = {}  # of each pre-dump
        self._is_pre_dump = False
        self._finds_pages = chain.needs_memory  # the dump's transforms will want to find pages of earlier rounds
        self._round = 0
        self._next_number = 0
        self.bytes_by_kind: collections.Counter[str] = collections.Counter()
        self._out, self._chain, self._compression = out, chain, compression
        self._digest_pages = digest_pages
        self._transforming = trio.Lock()
        self._dedup = _deduplicating(out, compression) if dedup else None
        self._pump = PagePump(out, compression, self._metrics, self._count)
        self.on_small: Callable[[str, bytes], None] = lambda _name, _data: None  #: sees small images as they go out

    @property
    def size(self) -> int:
        """Bytes of image sent so far."""
        return self.bytes_by_kind.total()

    @property
    def images(self) -> dict[str, SentImage]:
        """The images of this round."""
        return self._rounds[self._round]

    @property
    def sent(self) -> int:
        """Bytes that went out for the images of this round."""
        return sum(image.sent for image in self.images.values())

    async def begin_round(
        self, snapshot: str, chain: Chain, *, pre_dump: bool = False, ahead: int | None = None
    ) -> None:
        """What comes now is another round; `chain` transforms it. `pre_dump`: later ones may refer to its pages.
        `ahead`: bytes of pages that may wait to be sent, with `dedup`, so that the process need not wait for the link.
        """
        self._round = max(self._rounds) + 1
        self._rounds[self._round] = {}
        self._chain, self._is_pre_dump = chain, pre_dump
        if self._dedup:
            self._dedup.begin_round(self._next_number, ahead)
        await self._out.send(BeginRound(self._round, snapshot))

    def take_for_dump(self, chain: Chain) -> None:
        """The round that is under way is the dump; `chain` transforms what is still to come. RemoteProtocolError if
        that is too late for it."""
        if self._round in self._pagemaps:
            raise RemoteProtocolError("a pagemap of the dump came before anything that tells it from a pre-dump")
        self._chain, self._is_pre_dump = chain, False

    async def drop_round(self) -> None:
        """This round failed; its images, all ended, do not count."""
        self._rounds[self._round] = {}
        self._pagemaps.pop(self._round, None)
        if self._dedup:
            self._dedup.drop_round()
        await self._out.send(DropRound(self._round))

    @property
    def pages(self) -> "PageCounts | None":
        """What became of the pages of this round; None without `dedup`."""
        return self._dedup.counts if self._dedup else None

    @property
    def all_pages(self) -> "PageCounts | None":
        """The same of all rounds, those that failed too."""
        return self._dedup.all_counts if self._dedup else None

    def round_sizes(self) -> list[int]:
        """Bytes that went out for each round that was not dropped, the latest last."""
        rounds = list(self._rounds.values())
        return [sum(image.sent for image in sent.values()) for sent in [*filter(None, rounds[:-1]), rounds[-1]]]

    @property
    def round_bytes(self) -> int:
        """Bytes of the images of this round, whatever went out for them."""
        return sum(image.size for image in self.images.values())

    def totals(self) -> tuple[int, int]:
        """How many images make the migration, and their bytes."""
        images = [image for sent in self._rounds.values() for image in sent.values()]
        return len(images), sum(image.size for image in images)

    @property
    def reads_back(self) -> bool:
        """Whether the transforms of this round will want to see pages that were sent."""
        return self._chain.needs_memory

    async def send_from_pipe(self, name: str, fd: int) -> None:
        """Take the image `name` out of the pipe `fd` until its end, and send it. The caller closes `fd`."""
        await self.send_drained(name, fd, lambda: None)

    async def send_drained(self, name: str, fd: int, drained: Callable[[], None]) -> None:
        """The same; `drained` is called when nothing is to be read any more, which with `dedup` may be long before
        the image has been sent."""
        enlarge(fd)
        os.set_blocking(fd, False)
        if self._chain.wants(name) or self._keeps(name):
            read = await _read_all(name, fd)
            drained()
            await self.send_changed(name, read)
            return
        composed = self._dedup is not None and is_pages(name)
        image, digest = await self._open(name, digest=not is_pages(name) or self._digest_pages, composed=composed)
        if composed:
            await self._pump_new(image, fd, digest, drained)
        elif digest is None:
            await self._pump.pump(image, fd)
        else:
            await self._pump_small(image, fd, digest)
        if not composed:
            drained()
        await self._end(image, digest)

    async def send_changed(self, name: str, data: bytes) -> None:
        """Send what the transforms make of an image that is in memory, unless one holds it until the end."""
        if self._keeps(name):
            await self._keep_pagemap(name, data)
        changed = await self._transform(name, data) if self._chain.wants(name) else data
        if changed is not None:
            await self.send_whole(name, changed)

    def _keeps(self, name: str) -> bool:
        """Whether the dump's transforms may want to look it up."""
        return self._is_pre_dump and self._finds_pages and name.startswith("pagemap-")

    async def _keep_pagemap(self, name: str, data: bytes) -> None:
        kept = sum(len(pagemap.data) for one in self._pagemaps.values() for pagemap in one.values())
        if kept + len(data) > COLLECTED_LIMIT:
            raise RemoteProtocolError(f"{name}: pagemaps of {COLLECTED_LIMIT >> 20} MiB are kept already")
        pagemap = await trio.to_thread.run_sync(Pagemap, name, data)
        if self._is_pre_dump:  # else it was told meanwhile that this is the dump, whose transforms are still to take it
            self._pagemaps.setdefault(self._round, {})[name] = pagemap

    def earlier_rounds(self) -> list[tuple[Mapping[str, Pagemap], Mapping[str, SentImage]]]:
        """Pagemaps and images of the pre-dumps, the latest first; only where a transform needs memory."""
        return [(pagemaps, self._rounds[number]) for number, pagemaps in sorted(self._pagemaps.items(), reverse=True)]

    async def send_whole(self, name: str, data: bytes) -> None:
        """Send an image that is in memory."""
        image, digest = await self._open(name, digest=True)
        assert digest is not None
        for start in range(0, len(data), MAX_DATA):
            await self._send_chunk(image, data[start : start + MAX_DATA], digest)
        await self._end(image, digest)

    async def announce_memory(self) -> SentImage:
        """Post-copy: part of the memory will follow, by `send_memory`."""
        memory = SentImage(MEMORY, self._next_number, self._metrics.image_bytes.labels("out", image_kind(MEMORY)))
        self._next_number += 1
        await self._out.send(MemoryFollows(memory.number))
        return memory

    def take_up_memory(self, number: int, size: int) -> SentImage:
        """Post-copy: another has announced it, and sent `size` bytes."""
        return SentImage(MEMORY, number, self._metrics.image_bytes.labels("out", image_kind(MEMORY)), size)

    async def send_memory(self, memory: SentImage, fd: int) -> None:
        """Send the pages that come through the pipe `fd`, until its end. `Pages` must tell of them before."""
        await self._pump.pump(memory, fd)

    async def send_trial(self, data: bytes) -> None:
        """Send bytes that are of no image, to see how long they take: in a round that will be dropped."""
        number, self._next_number = self._next_number, self._next_number + 1
        await self._out.send(OpenImage(number, f"trial-{number}.img", False, self._round))
        for start in range(0, len(data), MAX_DATA):
            await self._out.send_bytes(number, start, data[start : start + MAX_DATA])
        await self._out.send(EndImage(number, len(data)))

    def send_all_pages(self) -> None:
        """From now on page images are spliced as they are, whatever the cache has."""
        self._dedup = None

    async def finish(self, store: PageStore, variant: str = "", before: Sequence[EarlierRound] = ()) -> None:
        """Every image has come: let the transforms do the rest, then declare the set complete.

        `variant`: that of the `criu --remote` that wrote them. `before`: as Chain.finish has it.
        """
        began = trio.current_time()
        held = await trio.to_thread.run_sync(self._chain.finish, store, before)
        _log.debug("the transforms are done", transforms=self._chain.name, seconds=trio.current_time() - began)
        for name, data in held.items():
            await self.send_whole(name, data)
        await self._out.send(ImagesComplete(*self.totals(), variant))

    async def _transform(self, name: str, data: bytes) -> bytes | None:
        """In a thread, for an image may be large; one at a time, as a chain wants it."""
        async with self._transforming:
            return await trio.to_thread.run_sync(self._chain.transform, name, data)

    async def _open(
        self, name: str, *, digest: bool, composed: bool = False
    ) -> tuple[SentImage, "xxhash.xxh3_128 | None"]:
        counter = self._metrics.image_bytes.labels("out", image_kind(name))
        image = SentImage(name, self._next_number, counter)
        self._next_number += 1
        self.images[name] = image
        await self._out.send(OpenImage(image.number, name, digest, self._round, composed))
        return image, xxhash.xxh3_128() if digest else None

    async def _end(self, image: SentImage, digest: "xxhash.xxh3_128 | None") -> None:
        await self._out.send(EndImage(image.number, image.size, digest.digest() if digest else None))

    async def _pump_small(self, image: SentImage, fd: int, digest: "xxhash.xxh3_128") -> None:
        while data := await read_some(fd, MAX_DATA):
            await self._send_chunk(image, data, digest)

    async def _send_chunk(self, image: SentImage, data: bytes, digest: "xxhash.xxh3_128") -> None:
        digest.update(data)
        self.on_small(image.name, data)
        await self._out.send_bytes(image.number, image.size, data)
        self._count(image, len(data))

    async def _pump_new(
        self, image: SentImage, fd: int, digest: "xxhash.xxh3_128 | None", drained: Callable[[], None]
    ) -> None:
        """Send only what the cache does not have."""

        def sent(scanned: "Scanned", size: int) -> None:
            if digest is not None:
                digest.update(scanned.new)
            self._count(image, scanned.size, size)
            self._compression.sent(len(scanned.new))

        assert self._dedup is not None
        await self._dedup.send(image.number, fd, sent, drained)

    def _count(self, image: SentImage, size: int, sent: int | None = None) -> None:
        """`size` more bytes of the image are out, as `sent` bytes."""
        image.size += size
        image.sent += size if sent is None else sent
        image.counter.inc(size)
        self.bytes_by_kind[image_kind(image.name)] += size
        if is_pages(image.name) and sent is None:
            self._compression.sent(size)


def _deduplicating(out: Outgoing, compression: Compression) -> "PageSender":
    try:
        from imgproxy.page_sender import PageSender  # with --dedup and in rounds only: it is slow to import
    except ImportError as error:
        reason = str(error).strip().splitlines()[-1:] or [""]
        raise UsageError(
            f"numpy cannot be loaded ({reason[0]}): install what it needs, such as libstdc++, or say --no-dedup"
        ) from error
    return PageSender(out, compression)


async def _read_all(name: str, fd: int) -> bytes:
    parts, size = [], 0
    while data := await read_some(fd, MAX_DATA):
        parts.append(data)
        size += len(data)
        if size > COLLECTED_LIMIT:
            raise TransformError(f"{name}: larger than the {COLLECTED_LIMIT >> 20} MiB that a transform may collect")
    return b"".join(parts)
