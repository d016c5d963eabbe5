"""Near-live migration where the kernel does not track changes of memory: copies of the running process, then the dump.

Each round dumps all of it and lets it go on (`imgproxy.ingest.live_copy`); of what is read only pages go out that the
cache does not have. So the process stands still for a copy within this machine, again and again, and the last time for
that and what it has changed since. This pays where the link is slower than such a copy, which is found out before
anything is frozen, and it needs memory here for what waits to be sent.
"""

import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog
import trio

from imgnode.criu import cause
from imgnode.journal import Journal
from imgnode.preflight import free_memory
from imgproxy.convergence import Convergence, RoundFigures
from imgproxy.hook import SCRIPT
from imgproxy.ingest.live_copy import LiveCopy
from imgproxy.near_live import Told, run_criu, run_rounds
from imgproxy.sender import ImageSender
from imgproxy.source import CacheView
from imgwire.frames import MAX_DATA
from imgwire.messages import PAGE
from imgwire.names import LAST_IMAGE
from transform.chain import Chain

#: How much of the free memory here may be filled with what waits to be sent.
SHARE = 0.5
#: How fast a copy is, as a part of how fast this program scans pages that are in its memory: CRIU reads them, puts them
#: into pipes and begins with a look at the whole process. The development machine scans 1.0 GB/s; a copy of 512 MiB was
#: 0.28 of that where all was new, and 0.63 in each round after it.
COPY_SHARE = 0.5
#: Chunks scanned to find that out.
SCANNED = 16
#: A link is tried with so many bytes, four times as many, and so on, until that takes TRIAL seconds.
FIRST_TRIAL, LAST_TRIAL = 256 << 10, 16 << 20
TRIAL = 0.05

_log = structlog.get_logger()


class CopyRounds:
    """The copies of the tree under `pid`, before its dump."""

    def __init__(
        self,
        sender: ImageSender,
        sync: Callable[[], Awaitable[None]],
        directory: Path,
        journal: Journal,
        criu: str,
        pid: int,
        options: Sequence[str],
    ) -> None:
        self._sender, self._sync, self._directory, self._journal = sender, sync, directory, journal
        self._criu, self._pid, self._options = criu, pid, options
        self._count = 0

    async def reason_against(self, need: int) -> str | None:
        """Why copies of a process of `need` bytes cannot pay; None if they may."""
        free = await free_memory()
        if need > SHARE * free:
            return f"a copy of the process needs {need >> 20} MiB here, and {free >> 20} MiB are free"
        rate = await self._link_rate(need)
        copied = COPY_SHARE * await trio.to_thread.run_sync(_scan_rate)
        _log.debug("link tried", bytes_per_second=rate, copied_per_second=copied)
        if rate < copied:
            return None
        rates = f"the link takes {rate / 1e6:.0f} MB/s, a copy of the process about {copied / 1e6:.0f} MB/s"
        return f"{rates}: copies could not make the last freeze shorter than one dump"

    async def _link_rate(self, need: int) -> float:
        """Bytes that the link takes in a second: of noise, in a round that is dropped."""
        await self._sender.begin_round("", Chain(()))
        size, largest = FIRST_TRIAL, min(need, LAST_TRIAL)
        while True:
            noise, began = os.urandom(size), trio.current_time()
            await self._sender.send_trial(noise)
            await self._sync()
            taken = trio.current_time() - began
            if taken >= TRIAL or size >= largest:
                break
            size *= 4
        await self._sender.drop_round()
        return size / taken

    async def copy(self, convergence: Convergence, view: CacheView, told: Told) -> str:
        """Copy as long as it pays; why no more. What `run_rounds` raises."""
        return await run_rounds(self._copy, convergence, view, told)

    async def _copy(self) -> RoundFigures | str:
        """One round; its figures, or why it failed."""
        self._count += 1
        one = LiveCopy(self._sender, self._directory / f"copy-{self._count}", self._journal)
        await self._sender.begin_round("", Chain(()), ahead=int(SHARE * await free_memory()))
        log = one.directory / "copy.log"
        if await one.take(lambda: run_criu(self._words(one.directory, log))):
            await self._sync()
            assert one.started_at is not None and self._sender.pages is not None
            pages = self._sender.pages
            return RoundFigures(
                self._sender.sent, one.started_at, trio.current_time(), one.frozen, pages.skipped, pages.zero
            )
        await self._sender.drop_round()
        reason = cause(log.read_text(errors="replace")) if log.exists() else None
        _log.warning("a copy failed: everything is dumped at once", reason=reason or f"no {LAST_IMAGE} came")
        return "a copy failed"

    def _words(self, directory: Path, log: Path) -> list[str]:
        script = ["--action-script", str(directory / SCRIPT)]
        where = ["-D", str(directory), "-t", str(self._pid), "-o", str(log)]
        return [self._criu, "dump", "--stream", "--leave-running", *where, *script, *self._options]


def _scan_rate() -> float:
    """Bytes that are scanned in a second."""
    from imgproxy.dedup import Deduplicator  # where there are rounds only: it is slow to import

    pages, noise = Deduplicator(), [memoryview(os.urandom(MAX_DATA)) for _ in range(SCANNED)]
    began = time.perf_counter()
    for number, chunk in enumerate(noise):
        pages.scan(0, number * (MAX_DATA // PAGE), chunk)
    return SCANNED * MAX_DATA / (time.perf_counter() - began)
