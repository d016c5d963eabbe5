"""Pre-dumps and a dump of our own: pages by the page server, the rest of the dump from its images directory.

CRIU cannot stream an incremental dump (`--stream` and a parent exclude each other), so the small images are files, on
tmpfs, sent as the dump closes them; it waits in its action script until the last has gone out. Each round has a
directory below that of the session; CRIU wants the one before as its parent and looks there for the inventory alone.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from imgnode.nursery import flat_nursery
from imgproxy.ingest.directory import WrittenImages
from imgproxy.ingest.page_server import Check, PageServer
from imgproxy.sender import ImageSender
from imgwire.errors import RemoteProtocolError
from transform.chain import MakeChain

if TYPE_CHECKING:
    from imgproxy.dedup import PageCounts


class RoundsIngest:
    """Takes the rounds one after the other; whoever runs CRIU says when each begins and ends."""

    begins_with = "pre-dump"
    variant = ""
    criu = 0
    ended_well = False

    def __init__(
        self,
        sender: ImageSender,
        make_chain: MakeChain,
        sync: Callable[[], Awaitable[None]],
        directory: Path,
    ) -> None:
        self.server = PageServer(sender, sync)
        self._sender, self._make_chain, self._directory = sender, make_chain, directory
        self.pre_dump = 0  #: the number of the one that is under way
        self._count = 0
        self._dumps = False
        self._last_good: Path | None = None
        self._current: Path | None = None
        self._files: WrittenImages | None = None
        self._files_sent = False
        self._over = trio.Event()

    @property
    def complete(self) -> bool:
        """Whether all pages and all files of the round are sent, the pages seen at the cache."""
        return self.server.whole and self._files_sent

    @property
    def started_at(self) -> float | None:
        """When the dump brought its first word of pages."""
        return self.server.began_at if self._dumps else None

    @property
    def directory(self) -> Path:
        """The images directory of this round."""
        assert self._current is not None
        return self._current

    @property
    def round_size(self) -> int:
        """Bytes that went out for the images of this round."""
        return self._sender.sent

    @property
    def pages(self) -> "PageCounts | None":
        """What became of the pages of this round, if that is known."""
        return self._sender.pages

    @property
    def parent(self) -> Path | None:
        """That of the last good round before."""
        return self._last_good

    def prepare(self) -> Path:
        """The images directory of the next round, made now; what is in one of another session stays there."""
        numbers = [int(path.name) for path in self._directory.iterdir() if path.name.isdecimal()]
        self._current = self._directory / str(max(numbers, default=0) + 1)
        self._current.mkdir(mode=0o700)
        self._watch(self._current)
        return self._current

    async def begin(self, *, dump: bool = False, refers: bool = True) -> None:
        """Another pre-dump, or the dump, in the directory that was prepared; `refers`: it knows its parent."""
        self._count += 1
        self._dumps, self.pre_dump = dump, 0 if dump else self._count
        self.server.begin(refers=refers)
        await self._sender.begin_round("", self._make_chain(dump=dump), pre_dump=not dump)

    async def take(self, sock: trio.socket.SocketType, may_close: Check = trio.lowlevel.checkpoint) -> None:
        """Serve this round's CRIU; the files that its dump writes meanwhile go out beside the pages."""
        files = self._files if self._dumps else None
        async with flat_nursery() as nursery:
            if files:
                nursery.start_soon(files.follow)
            await self.server.take(sock, may_close)
            if files:
                files.stop()

    async def end(self, *, good: bool) -> None:
        """A pre-dump has ended, or a dump that failed; what failed is dropped, and the next begins anew."""
        self._dumps, self.pre_dump = False, 0
        self.server.end(good=good)
        self._last_good = self.directory if good and self.server.whole else None
        if self._last_good is None:
            await self._sender.drop_round()

    def close(self) -> None:
        """The dump has ended."""
        self._over.set()

    @asynccontextmanager
    async def listening(self, _directory: Path) -> AsyncIterator[None]:
        """Whoever runs CRIU hands its page server's connection to us."""
        try:
            yield
        finally:
            self._watch(None)

    async def accept(self, _listener: None, _is_announced: Callable[[int], bool]) -> None:
        """Return when the dump has ended."""
        await self._over.wait()

    async def finish(self) -> None:
        """The dump has written its files: send what has not gone out. RemoteProtocolError unless its pages have come
        before."""
        if not self._dumps or not self.server.whole or self._files is None:
            raise RemoteProtocolError("criu dump has not brought its pages to our page server")
        await self._files.finish()
        self._files_sent = True

    def _watch(self, directory: Path | None) -> None:
        if self._files:
            self._files.close()
        self._files = WrittenImages(directory, self._sender) if directory else None
