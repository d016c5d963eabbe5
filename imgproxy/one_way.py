"""A checkpoint for a receiver that says nothing back: an archive file (`--to file:PATH`), or an original image-cache
(`--wire criu`).

There is no read-back, and no word that the destination holds or restored anything: what the receiver's end of `finish`
promises is all. The action script then lets CRIU do as it was told: end the process, or, with `--leave-running`, let it
go on.
"""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import trio

from imgnode.journal import Journal
from imgproxy.capture import DumpCapture, Ingest
from imgproxy.compression import Compression
from imgproxy.handover import Decision, Handover, HandoverPolicy
from imgproxy.ingest.directory import send_images
from imgproxy.ingest.remote import RemoteIngest
from imgproxy.ingest.stream import StreamIngest
from imgproxy.outgoing import ArchiveWriter, Outgoing
from imgproxy.page_pump import SentImage
from imgproxy.sender import ImageSender
from imgproxy.session import session_name
from imgproxy.source import CacheView
from imgwire.errors import RemoteProtocolError
from imgwire.messages import Hello
from imgwire.states import SessionState
from transform.chain import Chain
from transform.errors import TransformError
from transform.memory import PageStore


class OneWay(Outgoing, Protocol):
    """Where the images go."""

    compresses: bool  #: whether it takes zstd frames
    outcome: str  #: what a person is told of images that are there: "parked"

    async def finish(self) -> None:
        """All has been sent: make sure that it stays, as far as that can be."""

    def close(self) -> None:
        """Let go; what was not finished leaves nothing behind that could be taken for a checkpoint."""


def archive(path: Path, name: str) -> ArchiveWriter:
    """A new archive, for a session of that name. UsageError."""
    identity = secrets.token_hex(16)
    return ArchiveWriter(path, Hello(identity, session_name(name, identity)))


class _NoPages(PageStore):
    """Pages that went one way cannot be reached any more."""

    def read(self, image: str, offset: int, length: int) -> bytes:
        """Refuse."""
        raise TransformError(f"{image}: its pages are gone and cannot be rewritten; transform when it is restored")

    def patch(self, image: str, offset: int, data: bytes) -> None:
        """Refuse."""
        self.read(image, offset, len(data))


async def _no_read_back(image: SentImage, offset: int, length: int) -> bytes:
    """For a CRIU that wants to see a round before."""
    raise RemoteProtocolError(f"{image.name}: is gone, so criu cannot see its bytes from {offset} to {offset + length}")


class OneWaySession:
    """One checkpoint on its way; `timeout`: seconds that its tasks may stay frozen after the last image.

    `remote`: CRIU dumps with --remote; `linked`, `hookless`: see RemoteIngest, DumpCapture.
    """

    def __init__(
        self,
        out: OneWay,
        directory: Path,
        journal: Path,
        transforms: Callable[[], Chain],
        *,
        compress: str,
        dedup: bool = False,
        timeout: float = 300.0,
        remote: bool = False,
        linked: Sequence[Path] = (),
        hookless: bool = False,
    ) -> None:
        self.out = out
        self.view = CacheView()
        self.sender = ImageSender(out, transforms(), Compression(compress if out.compresses else "off"), dedup=dedup)
        changed, insists = self.view.changes.notify, not hookless

        def make_chain(*, dump: bool) -> Chain:
            return transforms() if dump else Chain(())

        self.ingest: Ingest[Any] = (
            RemoteIngest(self.sender, make_chain, _no_read_back, changed, insists=insists, linked=linked)
            if remote
            else StreamIngest(self.sender, changed, insists=insists)
        )
        self.journal = Journal(str(journal), secrets.token_hex(16))
        policy = HandoverPolicy(timeout=timeout, kills=False)
        self.handover = Handover(self.journal, self.view, policy, self._finish)
        self.dump = DumpCapture(directory, self.ingest, self.handover, self.handover.handle, hookless=hookless)

    async def capture(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Take the next `criu dump`; afterwards `done` tells whether that worked."""
        try:
            await self.dump.run(task_status=task_status)
        finally:
            self._close()

    @property
    def done(self) -> bool:
        """Whether the checkpoint is there."""
        return self.handover.decision is Decision.COMMITTED

    async def send_directory(self, directory: Path) -> None:
        """Send the images of a directory."""
        try:
            await send_images(directory, self.sender)
            self.dump.images_complete = True
            await self._finish()
        finally:
            self._close()

    async def _finish(self) -> None:
        await self.view.wait_for(lambda: self.dump.images_complete or self.ingest.complete)
        await self.sender.finish(_NoPages(), self.ingest.variant)
        await self.out.finish()
        self.view.state = SessionState.COMPLETE
        self.view.changes.notify()

    def _close(self) -> None:
        self.out.close()
        self.journal.remove()
