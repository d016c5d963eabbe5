"""One migration on the source: link, sender, capture socket, control socket and hand-over in one nursery.

    connect -> (criu dump) capture -> images complete -> hand-over -> committed | aborted -> told to the cache -> end

Whatever ends it, the journal says how, and the cache has been told or will be by `imgproxy recover`.
"""

import os
import platform
import re
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from imgnode import proc
from imgnode.channel import Channel
from imgnode.greeting import SessionRefused
from imgnode.journal import Journal
from imgnode.metrics import Metrics, metrics_server
from imgnode.nursery import flat_nursery
from imgnode.pacing import Pacer
from imgnode.preflight import NodeFacts, restores_with_old_criu
from imgproxy.capture import DumpCapture, Ingest
from imgproxy.compression import Compression
from imgproxy.dialer import CannotConnect, Dialer, Link
from imgproxy.handover import Decision, Handover, HandoverPolicy, WaitFor
from imgproxy.ingest.by_hand import RoundsByHand
from imgproxy.ingest.directory import send_images
from imgproxy.ingest.remote import RemoteIngest
from imgproxy.ingest.rounds import RoundsIngest
from imgproxy.ingest.stream import StreamIngest
from imgproxy.post_copy import PostCopy
from imgproxy.sender import ImageSender
from imgproxy.source import CacheView, LinkLost, RemotePages
from imgproxy.stopped_tree import StoppedTree
from imgwire import messages
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.names import MAX_DEFAULT_SESSION_NAME, check_session_name
from imgwire.states import AFTER_COMMIT, SessionState
from transform.chain import Chain
from transform.memory import EarlierRound
from transform.page_counts import PageCounts

#: Seconds for the cache to take note of how a session ended before that is left to `imgproxy recover`.
FAREWELL = 10.0
#: Seconds between two attempts at that.
FAREWELL_PAUSE = 0.5

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
    dedup: bool = False  #: pages that the cache has are not sent
    digest_pages: bool = False
    hookless: bool = False
    remote: bool = False  #: criu runs with --remote, the original one
    rounds: bool = False  #: pre-dumps and the dump are run by us, their pages come by page server
    by_hand: int | None = None  #: they are run by somebody else; the port of our page server, 0: any
    incremental: bool = False  #: such a one may learn of the rounds before, and send what has changed
    linked: tuple[Path, ...] = ()  #: other directories in which such a one looks for its socket
    patience: float = 30.0  #: seconds that a cut of the link may last before the hand-over
    need: int = 0
    arch: str = ""  #: the ISA that the process changes to, "" if it does not
    metrics: str | None = None
    temporary: bool = False  #: the images directory is ours alone: made with the session, gone before its journal is
    action_script: Path | None = None  #: of the user's, for the dump
    recover_options: tuple[str, ...] = ()  #: how `imgproxy recover` reaches the cache again


def session_name(chosen: str, identity: str) -> str:
    """The name that was chosen, or else one that tells a person where the session comes from. UsageError."""
    if not chosen:
        host = re.sub(r"[^A-Za-z0-9-]", "-", platform.node().partition(".")[0])
        part = host.strip("-")[: MAX_DEFAULT_SESSION_NAME - 9].rstrip("-")
        return f"{part or 'node'}-{identity[:8]}"
    try:
        return check_session_name(chosen)
    except RemoteProtocolError as error:
        raise UsageError(f"--session: {error}; choose another name") from error


class SourceSession:
    """A session that is open at the cache."""

    def __init__(self, config: SourceConfig, make_chain: Callable[[], Chain]) -> None:
        self.identity = secrets.token_hex(16)
        self.name = session_name(config.name, self.identity)
        self.config = config
        self.view = CacheView()
        self.channel = Channel(splices=config.dialer.splices, pacer=Pacer(config.limit_rate))
        self.compression = Compression(config.compress)
        self._metrics_server = metrics_server(config.metrics)
        self.metrics = self._metrics_server.metrics if self._metrics_server else Metrics()
        self.destination: NodeFacts | None = None
        self._transforms = make_chain
        self.sender = ImageSender(
            self.channel,
            self._make_chain(dump=True),
            self.compression,
            digest_pages=config.digest_pages,
            dedup=config.dedup,
            metrics=self.metrics,
        )
        self.pages = RemotePages(self.channel, self.view, self.sender)
        self.ingest = self._ingest()
        self.journal = Journal(str(config.journal), self.identity)
        self.handover = Handover(self.journal, self.view, config.policy, self._finish_images)
        handle = self.handover.handle
        if isinstance(self.ingest, RoundsByHand):
            handle = partial(self.ingest.handle, handle)
        self.dump = DumpCapture(
            config.directory,
            self.ingest,
            self.handover,
            handle,
            hookless=config.hookless,
            users_script=config.action_script,
        )
        self.stopped_tree = StoppedTree(self.view, self.handover, self.journal, self._ask_what_became_of_it)
        self.post_copy: PostCopy | None = None
        if config.policy.follows:
            self.post_copy = PostCopy(self.channel, self.sender, self.view, self.handover, self.stopped_tree)
            self.sender.on_small = self.post_copy.see
        self.foretold: float | None = None  #: seconds that the dump was expected to freeze the process
        self._told = False  # the cache knows how it ended
        self._link_scope = trio.CancelScope(shield=True)
        self._link = Link(config.dialer, self.channel, self._hello(), self.view, patience=config.patience)
        self._link.on_reconnect = self.metrics.reconnects.inc
        self._link.keeps_trying = lambda: self.handover.decision is Decision.COMMITTED

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[trio.Nursery]:
        """Open the session at the cache; the block runs with it. CannotConnect, SessionRefused."""
        self.config.journal.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            async with flat_nursery() as link:
                welcome = await link.start(self._run_link)
                try:
                    self.destination = NodeFacts.from_dict(welcome.facts)
                    self._write_opened()
                    if self.config.temporary:
                        self.config.directory.mkdir(mode=0o700)
                    async with self._told_at_the_end(), flat_nursery() as nursery:
                        if self._metrics_server:
                            await nursery.start(self._metrics_server.serve)
                        yield nursery
                        nursery.cancel_scope.cancel()
                finally:
                    self._link_scope.cancel()
        finally:
            self.channel.close()

    async def capture(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Take one `criu dump` to its end: afterwards the hand-over is committed or aborted."""
        async with flat_nursery() as nursery:
            nursery.start_soon(self._abort_when_cache_does, nursery.cancel_scope)
            await self.dump.run(task_status=task_status)
            nursery.cancel_scope.cancel()

    async def send_directory(self, directory: Path) -> None:
        """Send the images of a directory and leave them with the cache: nothing runs here that could be killed."""
        await send_images(directory, self.sender)
        self.dump.images_complete = True
        await self.handover.prepare()
        self.handover.commit()

    @property
    def settled(self) -> bool:
        """Whether the cache has all that this side can give: the process runs there, or is its to run."""
        waited_for_restore = "restored" in self.view.times
        return self.view.state is SessionState.RUNNING or (
            self.view.state is SessionState.COMMITTED and not waited_for_restore
        )

    @property
    def memory_left(self) -> bool:
        """Whether the process, given up here, still needs memory that is here."""
        return self.config.policy.lazy and not self.settled

    async def wait_settled(self) -> None:
        """After the commit: wait for the cache to have it, or to run it. LinkLost, SessionAborted."""
        await self.view.wait_for(lambda: self.settled)

    async def _finish_images(self) -> None:
        await self.ingest.finish()
        await self.view.wait_for(lambda: self.dump.images_complete or self.ingest.complete)
        if self.sender.reads_back:
            await self.sync()  # what is under way: the transforms' first question would wait for it
        before = [EarlierRound(pagemaps, self.pages.of(sent)) for pagemaps, sent in self.sender.earlier_rounds()]
        await self.sender.finish(self.pages, self.ingest.variant, before)

    def _make_chain(self, *, dump: bool) -> Chain:
        chain = self._transforms() if dump else Chain(())
        return chain.followed_by(PageCounts(self._is_for_old_criu))

    def _is_for_old_criu(self) -> bool:
        return self.destination is not None and restores_with_old_criu(self.destination)

    def _ingest(self) -> Ingest[Any]:
        insists, changed = not self.config.hookless, self.view.changes.notify
        if self.config.rounds or self.config.by_hand is not None:
            rounds = RoundsIngest(self.sender, self._make_chain, self.sync, self.config.directory)
            by_hand = self.config.by_hand
            return rounds if by_hand is None else RoundsByHand(rounds, self.config.directory, by_hand)
        if self.config.remote:
            return RemoteIngest(
                self.sender,
                self._make_chain,
                self.pages.read_image,
                changed,
                insists=insists,
                incremental=self.config.incremental,
                linked=self.config.linked,
            )
        return StreamIngest(self.sender, changed, insists=insists)

    async def begin_dump(self) -> None:
        """After rounds: what comes now is the dump."""
        await self.sender.begin_round("", self._make_chain(dump=True))

    async def sync(self) -> None:
        """See all that was sent at the cache."""
        await self.view.ask(self.channel, messages.Sync)

    async def _abort_when_cache_does(self, scope: trio.CancelScope) -> None:
        """Images that nobody keeps need not be dumped: CRIU hears of it at its next image, and resumes the tasks."""
        view = self.view
        await view.changes.wait_until(lambda: view.state is SessionState.ABORTED or bool(view.lost))
        if self.handover.decision is Decision.WAITING and "post-dump" not in self.handover.times:
            self.handover.abort(view.detail or view.lost)
            scope.cancel()

    async def _run_link(self, *, task_status: "trio.TaskStatus[messages.Welcome]") -> None:
        """Shielded: also when we are stopped, the cache is told how it ended. `opened` ends it after that."""
        with self._link_scope:
            async with flat_nursery() as nursery:
                nursery.start_soon(self._deliver_commit)
                await self._link.run(task_status=task_status)

    @asynccontextmanager
    async def _told_at_the_end(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await self._farewell()

    async def _ask_what_became_of_it(self) -> str:
        """The cache has been restarted while memory followed; its state there, once that is settled. LinkLost."""
        resolve = messages.Resolve(self.identity, True)
        while True:
            try:
                state = await self.config.dialer.resolve(resolve)
            except SessionRefused as error:
                raise LinkLost(str(error)) from error
            except CannotConnect as error:
                _log.debug("the cache cannot be reached yet", error=str(error))
            else:
                if state in (SessionState.RUNNING, SessionState.LOST):
                    return state
            await trio.sleep(FAREWELL_PAUSE)

    async def _farewell(self) -> None:
        """Tell the cache how it ended. What cannot be told now stays in the journal."""
        await self.handover.changes.wait_until(lambda: self.handover.decision is not Decision.DECIDING)
        committed = self.handover.decision is Decision.COMMITTED
        if self.handover.decision is Decision.WAITING:
            self.handover.abort("imgproxy ended before the hand-over")
        told = await self._tell(messages.Commit() if committed else messages.Abort(self.handover.reason))
        self._told = told and not (committed and self.config.policy.lazy and not self.settled)
        if self._told and not self.config.temporary:
            self.forget()
        if not told:
            _log.error("the cache could not be told how the session ended: run `imgproxy recover`", session=self.name)

    def forget(self) -> None:
        """Remove the journal, if the cache knows how it ended. It names a temporary directory, so that one goes first:
        what a crash leaves of it in between is for `imgproxy recover`."""
        if self._told:
            self.journal.remove()

    async def _deliver_commit(self) -> None:
        """The moment that the tree is dead the destination may run."""
        await self.handover.changes.wait_until(lambda: self.handover.decision is Decision.COMMITTED)
        await self.channel.send(messages.Commit())

    async def _tell(self, word: messages.Commit | messages.Abort) -> bool:
        wanted = AFTER_COMMIT | {SessionState.ABORTED}
        with trio.move_on_after(FAREWELL):
            if self.view.lost:
                return await self._tell_again(isinstance(word, messages.Commit))
            if self.view.state not in wanted:
                await self.channel.send(word)
                await self.view.changes.wait_until(lambda: self.view.state in wanted or bool(self.view.lost))
                if self.view.lost and self.view.state not in wanted:
                    return await self._tell_again(isinstance(word, messages.Commit))
            await self.channel.say_bye()
        return self.view.state in wanted

    async def _tell_again(self, commit: bool) -> bool:
        """The channel is gone for good (the cache was restarted): its journal knows the session."""
        resolve = messages.Resolve(self.identity, commit, self.handover.reason)
        while True:
            try:
                await self.config.dialer.resolve(resolve)
            except SessionRefused as error:
                _log.warning("the cache does not take it", error=str(error))
                return not commit
            except CannotConnect as error:
                _log.debug("the cache cannot be reached yet", error=str(error))
                await trio.sleep(FAREWELL_PAUSE)
            else:
                return True

    def _write_opened(self) -> None:
        self.journal.write(
            "opened",
            name=self.name,
            to=str(self.config.dialer.address),
            directory=os.fspath(self.config.directory),
            options=list(self.config.recover_options),
            temporary=self.config.temporary,
            action_script=self.config.action_script and os.fspath(self.config.action_script),
            machine=proc.machine_id(),
            boot=proc.boot_id(),
        )

    def _hello(self) -> messages.Hello:
        return messages.Hello(
            self.identity,
            self.name,
            wait_restored=self.config.policy.wait_for is WaitFor.RESTORED,
            need=self.config.need,
        )
