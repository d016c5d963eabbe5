"""One migration on the source: link, sender, capture socket, control socket and hand-over in one nursery.

    connect -> (criu dump) capture -> images complete -> hand-over -> committed | aborted -> told to the cache -> end

Whatever ends it, the journal says how, and the cache has been told or will be by `imgproxy recover`.
"""

import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import structlog
import trio

from imgnode import systemd
from imgnode.channel import Channel
from imgnode.control import serve_control
from imgnode.greeting import SessionRefused
from imgnode.journal import Journal
from imgnode.nursery import flat_nursery
from imgnode.pacing import Pacer
from imgnode.preflight import NodeFacts
from imgnode.unix import listening
from imgproxy.compression import Compression
from imgproxy.dialer import CannotConnect, Dialer, Link
from imgproxy.handover import Decision, Handover, HandoverPolicy, WaitFor
from imgproxy.hook import SOCKET as CONTROL_SOCKET
from imgproxy.ingest.stream import SOCKET as CAPTURE_SOCKET
from imgproxy.ingest.stream import StreamIngest
from imgproxy.sender import ImageSender
from imgproxy.source import CacheView, RemotePages, SessionAborted
from imgwire import messages
from imgwire.states import SessionState
from transform.chain import Chain

#: Seconds for the cache to take note of how a session ended before that is left to `imgproxy recover`.
FAREWELL = 10.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class SourceConfig:
    """What was chosen for one session."""

    dialer: Dialer
    directory: Path
    journal: Path
    name: str = ""
    policy: HandoverPolicy = field(default_factory=HandoverPolicy)
    compress: str = "auto"
    limit_rate: int | None = None
    digest_pages: bool = False
    hookless: bool = False
    patience: float = 30.0  #: seconds that a cut of the link may last before the hand-over
    need: int = 0
    recover_options: tuple[str, ...] = ()  #: how `imgproxy recover` reaches the cache again


class SourceSession:
    """A session that is open at the cache."""

    def __init__(self, config: SourceConfig, chain: Chain) -> None:
        self.identity = secrets.token_hex(16)
        self.name = config.name or f"{socket.gethostname().partition('.')[0]}-{self.identity[:8]}"
        self.config = config
        self.view = CacheView()
        self.channel = Channel(splices=config.dialer.splices, pacer=Pacer(config.limit_rate))
        self.compression = Compression(config.compress)
        self.sender = ImageSender(self.channel, chain, self.compression, digest_pages=config.digest_pages)
        self.ingest = StreamIngest(self.sender, self.view.changes.notify)
        self.journal = Journal(config.journal, self.identity)
        self.handover = Handover(self.journal, self.view, config.policy, self._finish_images)
        self.destination: NodeFacts | None = None
        self._link = Link(config.dialer, self.channel, self._hello(), self.view, patience=config.patience)
        self._link.keeps_trying = lambda: self.handover.decision is Decision.COMMITTED

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[trio.Nursery]:
        """Open the session at the cache; the block runs with it. CannotConnect, SessionRefused."""
        self.journal.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            async with flat_nursery() as nursery:
                welcome = await nursery.start(self._run_link)
                self.destination = NodeFacts.from_dict(welcome.facts)
                self._write_opened()
                nursery.start_soon(self._deliver_commit)
                try:
                    yield nursery
                finally:
                    with trio.CancelScope(shield=True):
                        await self._farewell()
                nursery.cancel_scope.cancel()
        finally:
            self.channel.close()

    async def capture(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Take one `criu dump` to its end: afterwards the hand-over is committed or aborted."""
        directory = self.config.directory
        async with flat_nursery() as nursery, listening(directory / CAPTURE_SOCKET) as listener:
            await nursery.start(serve_control, directory / CONTROL_SOCKET, self.handover.handle)
            nursery.start_soon(self._abort_when_cache_does)
            systemd.notify("READY=1")
            task_status.started()
            try:
                await self.ingest.accept(listener, self._is_announced)
                await self._conclude()
            finally:
                self.handover.abort("imgproxy was stopped")
            nursery.cancel_scope.cancel()

    async def wait_running(self) -> None:
        """After the commit: wait until the process runs at the destination. LinkLost, SessionAborted."""
        await self.view.wait_for(lambda: self.view.state is SessionState.RUNNING)

    def _is_announced(self, criu: int) -> bool:
        return self.config.hookless or self.handover.is_announced(criu)

    async def _conclude(self) -> None:
        """CRIU has hung up. Its action script may still be at work; without one this is the end of the dump."""
        handover = self.handover
        if self.config.hookless and self.ingest.complete:
            await handover.prepare()
            handover.commit()
        elif handover.decision is Decision.WAITING and "post-dump" not in handover.times:
            handover.abort("criu dump ended before the hand-over: its log has the reason")
        await handover.changes.wait_until(lambda: handover.decision in (Decision.COMMITTED, Decision.ABORTED))

    async def _finish_images(self) -> None:
        await self.view.wait_for(lambda: self.ingest.complete)
        await self.sender.finish(RemotePages(self.channel, self.view, self.sender))

    async def _abort_when_cache_does(self) -> None:
        """Images that nobody keeps need not be dumped: CRIU hears of it at its next image, and resumes the tasks."""
        await self.view.changes.wait_until(lambda: self.view.state is SessionState.ABORTED or bool(self.view.lost))
        if self.handover.decision is Decision.WAITING and "post-dump" not in self.handover.times:
            self.handover.abort(self.view.detail or self.view.lost)
            raise SessionAborted(self.handover.reason)

    async def _run_link(self, *, task_status: "trio.TaskStatus[messages.Welcome]") -> None:
        await self._link.run(task_status=task_status)

    async def _farewell(self) -> None:
        """Tell the cache how it ended. What cannot be told now stays in the journal."""
        committed = self.handover.decision is Decision.COMMITTED
        if self.handover.decision is Decision.WAITING:
            self.handover.abort("imgproxy ended before the hand-over")
        told = await self._tell(messages.Commit() if committed else messages.Abort(self.handover.reason))
        if told:
            self.journal.remove()
        else:
            _log.error("the cache could not be told how the session ended: run `imgproxy recover`", session=self.name)

    async def _deliver_commit(self) -> None:
        """The moment that the tree is dead the destination may run."""
        await self.handover.changes.wait_until(lambda: self.handover.decision is Decision.COMMITTED)
        await self.channel.send(messages.Commit())

    async def _tell(self, word: messages.Commit | messages.Abort) -> bool:
        wanted = (SessionState.COMMITTED, SessionState.RUNNING, SessionState.ABORTED)
        with trio.move_on_after(FAREWELL):
            if self.view.lost:
                return await self._tell_again(isinstance(word, messages.Commit))
            if self.view.state not in wanted:
                await self.channel.send(word)
                await self.view.changes.wait_until(lambda: self.view.state in wanted or bool(self.view.lost))
            await self.channel.say_bye()
        return self.view.state in wanted

    async def _tell_again(self, commit: bool) -> bool:
        """The channel is gone for good (the cache was restarted): its journal knows the session."""
        try:
            await self.config.dialer.resolve(messages.Resolve(self.identity, commit, self.handover.reason))
        except (CannotConnect, SessionRefused) as error:
            _log.warning("the cache does not take it", error=str(error))
            return not commit and isinstance(error, SessionRefused)
        return True

    def _write_opened(self) -> None:
        self.journal.write(
            "opened",
            name=self.name,
            to=str(self.config.dialer.address),
            directory=os.fspath(self.config.directory),
            options=list(self.config.recover_options),
        )

    def _hello(self) -> messages.Hello:
        return messages.Hello(
            self.identity,
            self.name,
            wait_restored=self.config.policy.wait_for is WaitFor.RESTORED,
            need=self.config.need,
        )
