"""One `criu dump` on our sockets, from the first connection to the decision where the process goes on."""

from pathlib import Path

import trio

from imgnode import systemd
from imgnode.action_script_file import action_script
from imgnode.control import serve_control
from imgnode.nursery import flat_nursery
from imgnode.unix import listening
from imgproxy.handover import FAILURES, Decision, Handover
from imgproxy.hook import SCRIPT, script_text
from imgproxy.hook import SOCKET as CONTROL_SOCKET
from imgproxy.ingest.stream import SOCKET as CAPTURE_SOCKET
from imgproxy.ingest.stream import StreamIngest

#: Why a hand-over was aborted if nobody but CRIU knows.
DUMP_ENDED = "criu dump ended before the hand-over: its log has the reason"


class DumpCapture:
    """The sockets and the action script in an images directory, for one dump."""

    def __init__(self, directory: Path, ingest: StreamIngest, handover: Handover, *, hookless: bool) -> None:
        self._directory, self._ingest, self._handover, self._hookless = directory, ingest, handover, hookless
        self.images_complete = False  #: images came by another way, all of them

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Take one dump; afterwards the hand-over is committed or aborted."""
        control = self._directory / CONTROL_SOCKET
        async with flat_nursery() as nursery, listening(self._directory / CAPTURE_SOCKET) as listener:
            await nursery.start(serve_control, control, self._handover.handle)
            await nursery.start(action_script, self._directory / SCRIPT, script_text(str(control)))
            systemd.notify("READY=1")
            task_status.started()
            try:
                await self._ingest.accept(listener, self._is_announced)
                await self._conclude()
            except FAILURES as error:
                self._handover.abort(str(error))
                raise
            finally:
                self._handover.abort("imgproxy was stopped")
            nursery.cancel_scope.cancel()

    def _is_announced(self, criu: int) -> bool:
        return self._hookless or self._handover.is_announced(criu)

    async def _conclude(self) -> None:
        """CRIU has hung up. Its action script may still be at work; without one this is the end of the dump."""
        handover = self._handover
        if self._hookless and self._ingest.complete:
            await handover.prepare()
            handover.commit()
        elif handover.decision is Decision.WAITING and "post-dump" not in handover.times:
            handover.abort(DUMP_ENDED)
        await handover.changes.wait_until(lambda: handover.decision in (Decision.COMMITTED, Decision.ABORTED))
