"""Pre-dumps and a dump of our own: pages by the page server, the rest of the dump from its images directory.

CRIU cannot stream an incremental dump (`--stream` and a parent exclude each other), so the small images are files, on
tmpfs, sent when the dump has written them all; it waits in its action script meanwhile. Each round has a directory
below that of the session; CRIU wants the one before as its parent and looks there for the inventory alone.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from imgproxy.ingest.directory import send_images
from imgproxy.ingest.page_server import PageServer
from imgproxy.sender import ImageSender
from imgwire.errors import RemoteProtocolError
from transform.chain import Chain


class RoundsIngest:
    """Takes the rounds one after the other; whoever runs CRIU says when each begins and ends."""

    begins_with = "pre-dump"
    variant = ""
    criu = 0
    ended_well = False

    def __init__(
        self,
        sender: ImageSender,
        make_chain: Callable[[], Chain],
        sync: Callable[[], Awaitable[None]],
        directory: Path,
    ) -> None:
        self.server = PageServer(sender, sync)
        self._sender, self._make_chain, self._directory = sender, make_chain, directory
        self._count = 0
        self._dumps = False
        self._last_good: Path | None = None
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
        return self._directory / str(self._count)

    @property
    def round_size(self) -> int:
        """Bytes of the images of this round."""
        return self._sender.round_sizes()[-1]

    @property
    def parent(self) -> Path | None:
        """That of the last good round before."""
        return self._last_good

    async def begin(self, *, dump: bool = False) -> None:
        """Another pre-dump, or the dump."""
        self._count += 1
        self._dumps = dump
        self.directory.mkdir(mode=0o700)
        self.server.begin()
        await self._sender.begin_round("", self._make_chain())

    async def end(self, *, good: bool) -> None:
        """A pre-dump has ended; one that failed is dropped, and the next begins anew."""
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
        yield

    async def accept(self, _listener: None, _is_announced: Callable[[int], bool]) -> None:
        """Return when the dump has ended."""
        await self._over.wait()

    async def finish(self) -> None:
        """The dump has written its files: send them. RemoteProtocolError unless its pages have come before."""
        if not self.server.whole:
            raise RemoteProtocolError("criu dump has not brought its pages to our page server")
        await send_images(self.directory, self._sender, of_round=True)
        self._files_sent = True
