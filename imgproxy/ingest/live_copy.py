"""A copy of a process that goes on: `criu dump --stream --leave-running`, of which only the pages are kept.

CRIU's pipes hold the pages of the process itself, and CRIU lets it go while some are still in them: what it writes
then would be in the copy. So the copy ends in CRIU's action script, the process still frozen, and that waits until
every pipe is empty. What was read from them may be sent later.

    listening -> images come -> pipes empty: the script may go -> CRIU resumes the process and hangs up -> pages sent
"""

import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import structlog
import trio

from imgnode.action_script_file import action_script
from imgnode.control import Say, serve_control
from imgnode.control_client import Request
from imgnode.journal import Journal
from imgnode.nursery import flat_nursery
from imgnode.pipes import PIPE_SIZE, read_some
from imgnode.signalling import Changes
from imgproxy.hook import SCRIPT, SOCKET, script_text
from imgproxy.ingest.stream import StreamIngest
from imgproxy.sender import ImageSender
from imgwire.errors import RemoteProtocolError
from imgwire.names import is_pages

_log = structlog.get_logger()


class LiveCopy(StreamIngest):
    """One copy. `journal`: that of the session, for the action script to write in if we die."""

    def __init__(self, sender: ImageSender, directory: Path, journal: Journal) -> None:
        self._news = Changes()
        super().__init__(sender, self._news.notify, insists=False)
        self.directory = directory
        self._journal = journal
        self._failed = False
        self.released_at: float | None = None  #: the pipes are empty: the process may go on

    @property
    def frozen(self) -> float:
        """Seconds from the first image until the process could go on."""
        if self.started_at is None or self.released_at is None:
            return 0.0
        return self.released_at - self.started_at

    async def take(self, run: Callable[[], Awaitable[int]]) -> bool:
        """`run` runs CRIU on our directory; whether it ended well and everything was sent. What it does wrong leaves a
        failed copy, of which nothing more will be sent."""
        self.directory.mkdir(mode=0o700)
        control = self.directory / SOCKET
        code, taken = 1, trio.Event()
        async with AsyncExitStack() as stack:
            listener = await stack.enter_async_context(self.listening(self.directory))
            nursery = await stack.enter_async_context(flat_nursery())
            await nursery.start(serve_control, control, self._answer)
            await nursery.start(action_script, self.directory / SCRIPT, script_text(str(control), self.begins_with))
            nursery.start_soon(self._accept, listener, taken)
            code = await run()
            if self.criu:
                await taken.wait()
            nursery.cancel_scope.cancel()
        return code == 0 and self.complete and not self._failed

    async def _accept(self, listener: trio.socket.SocketType, taken: trio.Event) -> None:
        try:
            await self.accept(listener, lambda _criu: True)
        except RemoteProtocolError as error:
            _log.warning("a copy failed", error=str(error))
            self._failed = True
            self._news.notify()
        taken.set()

    async def _answer(self, request: Request, say: Say, _gone: Callable[[], Awaitable[None]]) -> None:
        """The action script: it goes on when the pipes are empty, and whatever ends us."""
        if request.get("op") != "post-dump":
            await say({"ok": True})
            return
        await say({"session": self._journal.session, "journal": self._journal.directory})
        word: Request = {"decision": "stop", "reason": "the copy was given up"}
        try:
            await self._news.wait_until(lambda: self.complete or self._failed)
            if self.complete:
                word = {"decision": "done"}
        finally:
            self.released_at = trio.current_time()
            with trio.CancelScope(shield=True):
                await say(word)

    async def _image(self, name: str, fd: int) -> None:
        try:
            if is_pages(name):
                await self._sender.send_drained(name, fd, partial(self._ended, name))
            else:
                await _discard(fd)
                self._ended(name)
        finally:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)


async def _discard(fd: int) -> None:
    os.set_blocking(fd, False)
    while await read_some(fd, PIPE_SIZE):
        await trio.lowlevel.checkpoint()
