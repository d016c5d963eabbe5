"""Parking a checkpoint in an archive file: `imgproxy --to file:PATH`, and `imgproxy send DIR --to file:PATH`.

The archive has its name only when it is whole and on disk. The action script then lets CRIU do as it was told: end the
process, or, with `--leave-running`, let it go on.
"""

import secrets
from pathlib import Path

import trio

from imgnode.journal import Journal
from imgproxy.capture import DumpCapture
from imgproxy.compression import Compression
from imgproxy.handover import Decision, Handover, HandoverPolicy
from imgproxy.ingest.directory import send_images
from imgproxy.ingest.stream import StreamIngest
from imgproxy.outgoing import ArchiveWriter
from imgproxy.sender import ImageSender
from imgproxy.session import session_name
from imgproxy.source import CacheView
from imgwire.messages import Hello
from imgwire.states import SessionState
from transform.chain import Chain
from transform.errors import TransformError


class _NoPages:
    """The pages of an archive cannot be reached: they are in the file already."""

    def read(self, image: str, offset: int, length: int) -> bytes:
        """Refuse."""
        raise TransformError(f"{image}: pages in an archive cannot be rewritten; transform when it is restored")

    def patch(self, image: str, offset: int, data: bytes) -> None:
        """Refuse."""
        self.read(image, offset, len(data))


class ParkSession:
    """One checkpoint on its way into a file."""

    def __init__(self, path: Path, directory: Path, journal: Path, *, name: str, compress: str, chain: Chain) -> None:
        identity = secrets.token_hex(16)
        self.name = session_name(name, identity)
        self.archive = ArchiveWriter(path, Hello(identity, self.name))
        self.view = CacheView()
        self.compression = Compression(compress)
        self.sender = ImageSender(self.archive, chain, self.compression)
        self.ingest = StreamIngest(self.sender, self.view.changes.notify)
        self.journal = Journal(str(journal), identity)
        self.handover = Handover(self.journal, self.view, HandoverPolicy(kills=False), self._finish)
        self.dump = DumpCapture(directory, self.ingest, self.handover, hookless=False)

    async def capture(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Park the next `criu dump`; afterwards `done` tells whether that worked."""
        try:
            await self.dump.run(task_status=task_status)
        finally:
            self._close()

    @property
    def done(self) -> bool:
        """Whether the archive is there."""
        return self.handover.decision is Decision.COMMITTED

    async def send_directory(self, directory: Path) -> None:
        """Park the images of a directory."""
        try:
            await send_images(directory, self.sender)
            self.dump.images_complete = True
            await self._finish()
        finally:
            self._close()

    async def _finish(self) -> None:
        await self.view.wait_for(lambda: self.dump.images_complete or self.ingest.complete)
        await self.sender.finish(_NoPages())
        await self.archive.finish()
        self.view.state = SessionState.COMPLETE
        self.view.changes.notify()

    def _close(self) -> None:
        self.archive.close()
        self.journal.remove()
