"""One `criu dump` on our sockets, from the first connection to the decision where the process goes on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import trio

from imgnode import systemd
from imgnode.action_script_file import action_script
from imgnode.control import serve_control
from imgnode.nursery import flat_nursery
from imgnode.unix import linked, listening
from imgproxy.handover import FAILURES, Decision, Handover
from imgproxy.hook import SCRIPT, script_text
from imgproxy.hook import SOCKET as CONTROL_SOCKET

#: Why a hand-over was aborted if nobody but CRIU knows.
DUMP_ENDED = "criu dump ended before the hand-over: its log has the reason"


class Ingest(Protocol):
    """A way in which a dump's images come to a socket."""

    socket: str
    begins_with: str
    variant: str
    started_at: float | None

    @property
    def criu(self) -> int:
        """The pid of the CRIU that dumps."""

    @property
    def complete(self) -> bool:
        """Whether every image of the dump has been read to its end."""

    @property
    def ended_well(self) -> bool:
        """Whether the end of the dump may be taken for its success, without a word of its action script."""

    async def accept(self, listener: trio.socket.SocketType, is_announced: Callable[[int], bool]) -> None:
        """Take the images of one dump, return at its end."""


class DumpCapture:
    """The sockets and the action script in an images directory, for one dump.

    CRIU finds the images' socket in the other directories `linked`, too.
    """

    def __init__(
        self, directory: Path, ingest: Ingest, handover: Handover, *, hookless: bool, linked: Sequence[Path] = ()
    ) -> None:
        self._directory, self._ingest, self._handover, self._hookless = directory, ingest, handover, hookless
        self._linked = linked
        self.images_complete = False  #: images came by another way, all of them

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Take one dump; afterwards the hand-over is committed or aborted."""
        control, socket = self._directory / CONTROL_SOCKET, self._directory / self._ingest.socket
        script = script_text(str(control), self._ingest.begins_with)
        async with flat_nursery() as nursery, listening(socket) as listener:
            await nursery.start(serve_control, control, self._handover.handle)
            await nursery.start(action_script, self._directory / SCRIPT, script)
            with linked(socket, self._linked):
                systemd.notify("READY=1")
                task_status.started()
                await self._take(listener)
            nursery.cancel_scope.cancel()

    async def _take(self, listener: trio.socket.SocketType) -> None:
        try:
            await self._ingest.accept(listener, self._handover.is_announced)
            await self._conclude()
        except FAILURES as error:
            self._handover.abort(str(error))
            raise
        finally:
            self._handover.abort("imgproxy was stopped")

    async def _conclude(self) -> None:
        """CRIU has hung up. Its action script may still be at work; without one this is the end of the dump."""
        handover = self._handover
        if handover.decision is Decision.WAITING and "post-dump" not in handover.times:
            if self._hookless and self._ingest.ended_well:
                await handover.prepare()
                handover.commit()
            else:
                handover.abort(DUMP_ENDED)
        await handover.changes.wait_until(lambda: handover.decision in (Decision.COMMITTED, Decision.ABORTED))
