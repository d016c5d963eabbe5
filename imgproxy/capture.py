"""One `criu dump` on our sockets, from the first connection to the decision where the process goes on."""

from collections.abc import Callable, Sized
from contextlib import AbstractAsyncContextManager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import trio

from imgnode import systemd
from imgnode.action_script_file import action_script
from imgnode.control import Handler, serve_control
from imgnode.criu_orphans import bury
from imgnode.nursery import flat_nursery
from imgproxy.handover import FAILURES, Decision, Handover
from imgproxy.hook import SCRIPT, script_text
from imgproxy.hook import SOCKET as CONTROL_SOCKET

#: Why a hand-over was aborted if nobody but CRIU knows.
DUMP_ENDED = "criu dump ended before the hand-over: its log has the reason"


Listener = TypeVar("Listener")


class Ingest(Protocol[Listener]):
    """A way in which a dump's images come."""

    begins_with: str
    variant: str

    @property
    def started_at(self) -> float | None:
        """When the first image of the dump came: the tasks are frozen."""

    @property
    def criu(self) -> int:
        """The pid of the CRIU that dumps."""

    @property
    def complete(self) -> bool:
        """Whether every image of the dump has been read to its end."""

    @property
    def ended_well(self) -> bool:
        """Whether the end of the dump may be taken for its success, without a word of its action script."""

    def listening(self, directory: Path) -> AbstractAsyncContextManager[Listener]:
        """Where CRIU finds us, in its images directory."""
        ...

    async def accept(self, listener: Listener, is_announced: Callable[[int], bool]) -> None:
        """Take the images of one dump, return at its end."""

    async def finish(self) -> None:
        """CRIU has written everything: send what has not been sent."""


class DumpCapture(Generic[Listener]):
    """The sockets and the action script in an images directory, for one dump."""

    def __init__(
        self,
        directory: Path,
        ingest: Ingest[Listener],
        handover: Handover,
        handle: Handler,
        *,
        hookless: bool,
        users_script: Path | None = None,
    ) -> None:
        """`handle` answers on the control socket. `users_script`: an action script of the user's."""
        self._directory, self._ingest, self._handover, self._hookless = directory, ingest, handover, hookless
        self._handle, self._users_script = handle, users_script
        self.images_complete = False  #: images came by another way, all of them

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Take one dump; afterwards the hand-over is committed or aborted."""
        control = self._directory / CONTROL_SOCKET
        script = script_text(str(control), self._ingest.begins_with, self._users_script)
        async with flat_nursery() as nursery, self._ingest.listening(self._directory) as listener:
            await nursery.start(serve_control, control, self._handle)
            await nursery.start(action_script, self._directory / SCRIPT, script)
            nursery.start_soon(self._bury_orphans)
            systemd.notify("READY=1")
            task_status.started()
            await self._take(listener)
            nursery.cancel_scope.cancel()

    async def _take(self, listener: Listener) -> None:
        try:
            await self._ingest.accept(listener, self._handover.is_announced)
            await self._conclude()
        except FAILURES as error:
            self._handover.abort(str(error))
            raise
        finally:
            self._handover.abort("imgproxy was stopped")

    async def _bury_orphans(self) -> None:
        """Nobody is waited for because of what a CRIU that was killed has left of itself."""
        handover = self._handover
        async with flat_nursery() as nursery:
            for number in count():
                await handover.changes.wait_until(partial(_has_more_than, handover.announced, number))
                nursery.start_soon(bury, handover.announced[number])

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


def _has_more_than(these: Sized, number: int) -> bool:
    return len(these) > number
