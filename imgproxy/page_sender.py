"""Sends page images without what the cache has already, composed of what it has and what is new.

The pages pass through here: a chunk is read from CRIU's pipe into one buffer, again and again, and scanned in a thread;
what is new of it is copied out and sent, compressed where that pays, while the next chunk is read. Chunks go out in the
order in which they were scanned, whatever image they are of, so that a page which is referred to has always gone out
before.

How much may wait between the two is what the caller allows. For a dump that ends the process it is little. For one
after which the process goes on it is all of it: the process stands still until its pages have been read, not until they
have been sent.
"""

import itertools
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from imgnode.nursery import flat_nursery
from imgnode.signalling import Changes
from imgproxy.compression import Compression
from imgproxy.dedup import Deduplicator, PageCounts, Scanned
from imgproxy.outgoing import Outgoing
from imgwire.frames import MAX_DATA
from imgwire.messages import MAX_RUNS, PAGE, RUN, Compose

#: Bytes of new pages that wait to be sent: one chunk on its way and one behind it keep both sides at work.
AHEAD = 2 * MAX_DATA


@dataclass
class Waiting:
    """The chunks of one image that are scanned and not sent yet, each with its turn."""

    image: int
    chunks: deque[tuple[int, Scanned]] = field(default_factory=deque)
    at_end: bool = False
    sent: int = 0  #: bytes of new pages
    runs: bytearray = field(default_factory=bytearray)


class PageSender:
    """All page images of one session."""

    def __init__(self, out: Outgoing, compression: Compression) -> None:
        self._ahead = AHEAD  # bytes of new pages that may wait
        self._out, self._compression, self._pages = out, compression, Deduplicator()
        self._changes = Changes()
        self._scanning = trio.Lock()
        self._turns = itertools.count()
        self._turn = 0
        self._waiting_bytes = 0

    @property
    def counts(self) -> PageCounts:
        """What became of the pages of this round."""
        return self._pages.counts

    @property
    def all_counts(self) -> PageCounts:
        """The same of all rounds, those that failed too."""
        return self._pages.before + self._pages.counts

    def begin_round(self, first_image: int, ahead: int | None = None) -> None:
        """Another round, nothing being under way; its images have numbers from `first_image` on, and so many bytes of
        their new pages may wait. What one that was given up has left in line is forgotten."""
        self._pages.begin_round(first_image)
        self._ahead = AHEAD if ahead is None else ahead
        self._turns, self._turn, self._waiting_bytes = itertools.count(), 0, 0

    def drop_round(self) -> None:
        """This round has failed; all its images have ended."""
        self._pages.drop_round()

    async def send(
        self, image: int, fd: int, sent: Callable[[Scanned, int], None], drained: Callable[[], None]
    ) -> None:
        """Send the pages that come out of the pipe `fd` until its end, when `drained` is called. `sent` is told each
        chunk, and how many bytes went out for it."""
        waiting = Waiting(image)
        async with flat_nursery() as nursery:
            nursery.start_soon(self._send_waiting, waiting, sent)
            await self._scan_all(waiting, fd)
            drained()

    async def _scan_all(self, waiting: Waiting, fd: int) -> None:
        buffer, first = memoryview(bytearray(MAX_DATA)), 0
        while size := await _fill(fd, buffer):
            whole = size - size % PAGE  # what came of one more page is of a CRIU that died: no pagemap lists it
            if not whole:
                break
            async with self._scanning:
                scanned = await trio.to_thread.run_sync(self._pages.scan, waiting.image, first, buffer[:whole])
                waiting.chunks.append((next(self._turns), scanned))
            first += len(scanned.new) // PAGE
            self._waiting_bytes += len(scanned.new)
            self._changes.notify()
            await self._changes.wait_until(lambda: self._waiting_bytes < self._ahead)
        waiting.at_end = True
        self._changes.notify()

    async def _send_waiting(self, waiting: Waiting, sent: Callable[[Scanned, int], None]) -> None:
        while True:
            await self._changes.wait_until(lambda: waiting.at_end or bool(waiting.chunks))
            if not waiting.chunks:
                break
            turn, scanned = waiting.chunks.popleft()
            await self._changes.wait_until(partial(self._is_due, turn))
            size = await self._send(waiting, scanned)
            sent(scanned, size)
            self._turn += 1
            self._waiting_bytes -= len(scanned.new)
            self._changes.notify()
        await self._compose(waiting)

    def _is_due(self, turn: int) -> bool:
        return self._turn == turn

    async def _send(self, waiting: Waiting, scanned: Scanned) -> int:
        """The new pages of a chunk; what went out for them."""
        if len(waiting.runs) + len(scanned.runs) > MAX_RUNS * RUN.size:
            await self._compose(waiting)
        waiting.runs += scanned.runs
        if not scanned.new:
            return 0
        packed, offset = None, waiting.sent
        if self._compression.wanted:
            packed = await trio.to_thread.run_sync(self._compression.compress, scanned.new)
        waiting.sent += len(scanned.new)
        if packed is None:
            await self._out.send_bytes(waiting.image, offset, scanned.new)
            return len(scanned.new)
        await self._out.send_bytes(waiting.image, offset, packed, raw_length=len(scanned.new))
        return len(packed)

    async def _compose(self, waiting: Waiting) -> None:
        if waiting.runs:
            await self._out.send(Compose(waiting.image, bytes(waiting.runs)))
            waiting.runs.clear()


async def _fill(fd: int, buffer: memoryview) -> int:
    """Fill the buffer from a pipe; fewer bytes than that are its last."""
    filled = 0
    while filled < len(buffer):
        try:
            size = os.readv(fd, [buffer[filled:]])
        except BlockingIOError:
            await trio.lowlevel.wait_readable(fd)
            continue
        if not size:
            break
        filled += size
    return filled
