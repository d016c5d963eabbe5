"""One migration as the destination sees it: its images, its state, its word to the source.

The session is what the link's channel delivers to. It never decides alone once the source may have committed ("in
doubt"): from the moment that it has told the source what the source waits for, only the source's word ends it. Before
that, anything that goes wrong aborts it, and the process runs on at the source.
"""

from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import structlog
import trio

from imgcache.arena import Arena, StoreFull
from imgcache.kept_memory import KeptMemory, LazyImages
from imgcache.lazy_memory import LazyMemory, Memory
from imgcache.record import Record
from imgcache.source import Source
from imgcache.store import ImageStore
from imgnode import proc
from imgnode.channel import Payload
from imgnode.journal import Journal
from imgnode.metrics import Metrics
from imgnode.nursery import flat_nursery
from imgnode.signalling import Changes
from imgnode.transport import Transport
from imgwire import messages
from imgwire.errors import LocalProtocolError, RemoteProtocolError, UsageError
from imgwire.link import LinkConnection
from imgwire.names import image_kind
from imgwire.states import AFTER_COMMIT, SessionState, advance, is_final

#: What may go wrong with images that come in: the proxy's fault, or no room, or a disk that fails.
FAULTS = (RemoteProtocolError, StoreFull, OSError)
#: A finished session waits this long for the proxy to take note and say goodbye.
LINGER = 5.0


@dataclass
class Attempt:
    """One `criu restore` that reads this session."""

    criu: int  #: its pid, 0 if it cannot be seen from here
    hooked: bool  #: it runs our action script, so it stops before the first instruction and asks
    init: int = 0  #: pid of the restored tree's root, once restored


class Session:
    """See the module's text. `identity` is the id that the proxy chose."""

    def __init__(
        self,
        identity: str,
        name: str,
        *,
        wait_restored: bool,
        directory: Path,
        arena: Arena,
        journal: Journal,
        metrics: Metrics,
        revived: SessionState | None = None,
    ) -> None:
        self.identity, self.name, self.directory = identity, name, directory
        self.wait_restored = wait_restored
        self.revived = revived is not None  #: known from the journal only: its images are lost
        self.state = revived or SessionState.RECEIVING
        self.reason = ""  #: why it was aborted
        self.changes = Changes()
        self.on_news: Callable[[], None] = lambda: None  #: called when a restore may find here what it waits for
        self.store = ImageStore(arena)
        self.source = Source(self.changes)
        self.attempt: Attempt | None = None
        self.restore_options: tuple[str, ...] | None = None
        self.claimed = False  #: a restore has taken it
        self.failures = 0  #: restores that failed
        self.following: LazyMemory | None = None  #: post-copy: what follows the process from its source
        self.kept: KeptMemory | None = None  #: a lazy restore: what is here, and follows it all the same
        self.guard: Callable[[int], Awaitable[None]] | None = None  #: sees that a tree dies that misses its memory
        self.released = False  #: post-copy: the restored process was told to run
        self.dropped = False  #: ... and the operator has changed his mind
        self._memory_served = False
        self.cpu_requests: deque[messages.CheckCpu] = deque()
        self.metrics = metrics
        self._record = Record(journal, metrics, name)
        self._readers = 0
        self._log = structlog.get_logger().bind(session=name)
        self._promised = self.revived  # the source has been told what it waits for, so it may have committed
        if not revived:
            self._record.write(SessionState.RECEIVING, name=name, wait_restored=wait_restored)

    @property
    def journal_directory(self) -> Path:
        """Where its journal is."""
        return self._record.directory

    @property
    def in_doubt(self) -> bool:
        """Whether the source may have committed without our knowing: then only its word counts."""
        return self._promised and self.state in (SessionState.COMPLETE, SessionState.RESTORED)

    @property
    def memory(self) -> Memory | None:
        """What the process may run without, and then waits for."""
        return self.following or self.kept

    @property
    def images(self) -> ImageStore | LazyImages:
        """What a restore reads."""
        return self.kept.images if self.kept else self.store

    @property
    def needs_source(self) -> bool:
        """Whether a process runs here, or is about to, whose memory is not all in its place."""
        return self.memory is not None and self.state in (SessionState.COMMITTED, SessionState.FOLLOWING)

    @property
    def over(self) -> bool:
        """Whether nothing can follow."""
        return is_final(self.state)

    @property
    def servable(self) -> bool:
        """Whether `self.attempt` may read images now: all are here, and what it restores cannot run too early."""
        if self.memory is not None and not self._memory_served:
            return False
        if self.state in (SessionState.COMMITTED, SessionState.RUNNING):
            return True
        return self.state is SessionState.COMPLETE and self.attempt is not None and self.attempt.hooked

    # ---- what the source says (Receiver) ----

    def on_message(self, message: messages.Message) -> None:
        """Take one message of the proxy's. What it did wrong aborts the session; the connection goes on."""
        try:
            self._take(message)
        except FAULTS as error:
            self._fail(error)
        self.changes.notify()

    async def on_data(self, payload: Payload) -> None:
        """Take a frame of image bytes into the store."""
        if self.state is not SessionState.ABORTED:
            try:
                await self.store.receive(payload)
                self._memory_arrived()
            except FAULTS as error:
                self._fail(error)
        while payload.left:  # of an aborted session: dropped
            await payload.read()

    def _fail(self, error: Exception) -> None:
        """The images cannot be right: abort. Where that is not ours to decide, only the connection ends."""
        if self.in_doubt or self.state in AFTER_COMMIT:
            raise RemoteProtocolError(f"session {self.name} is {self.state}: {error}") from error
        if self.state is not SessionState.ABORTED:
            self.abort(str(error))

    def _take(self, message: messages.Message) -> None:
        if self.state is SessionState.ABORTED:
            return
        match message:
            case messages.BeginRound() | messages.DropRound() | messages.OpenImage() | messages.Compose():
                self._arrange(message)
            case messages.EndImage():
                image = self.store.end(message)
                self.metrics.image_bytes.labels("in", image_kind(image.name)).inc(image.size)
            case messages.Patch():
                self._check_receiving("a patch")
                self.store.patch(message)
                self.metrics.patches.inc()
            case messages.ReadBack() | messages.Sync() | messages.CheckCpu():
                self._ask(message)
            case messages.MemoryFollows() | messages.Pages():
                self._take_memory(message)
            case messages.Restore(options, lazy):
                if lazy and self.memory is None:
                    self.kept = KeptMemory(self.store)
                self.restore_options = options
            case messages.ImagesComplete():
                self._check_receiving("the end of the images")
                self.store.finish(message)
                self._expect_memory()
                self._advance(SessionState.COMPLETE, follows=self.memory.total if self.memory else 0)
            case messages.Commit():
                self.commit()
            case messages.Abort(reason):
                self.aborted_by_source(reason)
            case _:
                raise LocalProtocolError(f"{type(message).__name__} reached a cache")

    def _arrange(
        self, message: messages.BeginRound | messages.DropRound | messages.OpenImage | messages.Compose
    ) -> None:
        rounds, broken = len(self.store.rounds), self.store.broken
        self.store.arrange(message)
        if len(self.store.rounds) != rounds:
            self.on_news()
        if self.store.broken != broken:
            self._log.warning("a pre-dump failed: its pages cannot be used", error=self.store.broken)

    def _take_memory(self, message: messages.MemoryFollows | messages.Pages) -> None:
        if isinstance(message, messages.MemoryFollows):
            self._check_receiving("memory that follows")
            self.following = LazyMemory(self.store.expect_memory(message.image), message.image)
        elif self.following is None:
            raise RemoteProtocolError("pages follow where none were announced")
        else:
            self.following.announce(message)

    def _expect_memory(self) -> None:
        if self.following is not None:
            self.following.expect(self.store)
        elif self.kept is not None:
            self.kept.expect()

    def _memory_arrived(self) -> None:
        if self.following is not None:
            self.following.arrived()
            self.changes.notify()

    def _ask(self, question: messages.ReadBack | messages.Sync | messages.CheckCpu) -> None:
        match question:
            case messages.ReadBack(request, number, offset, length):
                image = self.store.readable(number, offset, length)
                self.source.say(messages.Reply(request, image.read(offset, length)))
            case messages.Sync(request):
                self.source.say(messages.Reply(request))
            case messages.CheckCpu():
                self.cpu_requests.append(question)

    def commit(self) -> None:
        """The source's copy is dead: this one is the process. Told twice it does nothing the second time."""
        if self.state not in AFTER_COMMIT:
            if self.state is SessionState.RECEIVING:
                raise RemoteProtocolError("committed before the images were complete")
            self._advance(SessionState.COMMITTED)

    def aborted_by_source(self, reason: str) -> None:
        """The source says that the process runs on there."""
        if self.state in AFTER_COMMIT:
            raise RemoteProtocolError("aborted after it was committed")
        if self.state is not SessionState.ABORTED:
            self.reason = reason
            self._advance(SessionState.ABORTED, reason)

    # ---- what happens here ----

    def abort(self, reason: str) -> None:
        """Something failed on this side while the source can still go on."""
        if self.in_doubt:
            raise LocalProtocolError("a session in doubt cannot be aborted by the destination")
        self.reason = reason
        self._advance(SessionState.ABORTED, reason)

    def drop(self, reason: str) -> None:
        """The operator ends the session, whatever may come of it."""
        if self.needs_source:
            self.dropped = True  # the process is ended first: see `imgcache.restore`
            self.changes.notify()
        elif not self.over:
            self.reason = reason
            self.state = SessionState.ABORTED
            self._record.write(SessionState.ABORTED, detail=reason)
            self._log.warning("dropped", reason=reason)
            self.source.say(messages.State(SessionState.ABORTED, reason))

    def begin(self, attempt: Attempt) -> None:
        """A `criu restore` is there and waits for its images."""
        self.attempt = attempt
        self.source.say(messages.State("restore-ready", "hooked" if attempt.hooked else "unhooked"))
        self.changes.notify()

    def restored(self, init: int) -> None:
        """The attempt has restored everything and waits for the commit."""
        if self.attempt is not None:
            self.attempt.init = init
        if self.state is SessionState.COMPLETE:
            tree = [] if self.memory is None else [list(task) for task in proc.tree(init)]
            self._advance(SessionState.RESTORED, init=init, tree=tree)

    def running(self, ago: float = 0.0) -> None:
        """The process runs here, since `ago` seconds."""
        if self.state is SessionState.COMMITTED:
            self._advance(SessionState.RUNNING if self.memory is None else SessionState.FOLLOWING, f"{ago:.3f}")

    # ---- post-copy ----

    def memory_is_served(self) -> None:
        """`criu lazy-pages` is there: the restore may begin."""
        self._memory_served = True
        self.changes.notify()

    def want(self, pages: messages.WantPages) -> None:
        """Ask the source for pages that the process waits for: for all of them, however long the link is cut."""
        self.source.ask(pages)

    def whole(self) -> None:
        """The process runs here and has all its memory: it needs the source no more."""
        if self.state in (SessionState.COMMITTED, SessionState.FOLLOWING):
            self._advance(SessionState.RUNNING)

    def lose(self, reason: str) -> None:
        """The process died here, and had perhaps run, before its memory was here: the source's copy is the one left."""
        if self.state in (SessionState.COMMITTED, SessionState.FOLLOWING):
            self.reason = reason
            self._advance(SessionState.LOST, reason)

    def discard(self) -> None:
        """It was never opened."""
        self._record.forget()
        self.store.arena.close()
        self.source.close()

    def forget(self) -> None:
        """The source knows how it ended, or never needs to: a session that nobody remembers was aborted."""
        if self.state is SessionState.ABORTED:
            self._record.forget()

    def restore_failed(self, reason: str) -> None:
        """The attempt has ended without a running process, and nothing is left of it. It can be tried again."""
        self.attempt = None
        self.failures += 1
        if self.state is SessionState.RESTORED:
            self._advance(SessionState.COMPLETE)
        if not is_final(self.state):
            self._log.warning("the restore failed; the images are kept", reason=reason)
            self.source.say(messages.State("restore-failed", reason))
        self.changes.notify()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """While images are being read, the store stays open."""
        self._readers += 1
        try:
            yield
        finally:
            self._readers -= 1
            self.changes.notify()

    # ---- the link ----

    async def attach(self, transport: Transport, connection: LinkConnection, peer_received: int) -> None:
        """Use this connection until it breaks or the proxy says goodbye. A newer one takes over from an older one."""
        await self.source.carry(partial(self.source.channel.run, transport, connection, peer_received, self))

    async def take_over(self) -> None:
        """Another proxy goes on for one that died while memory followed: a channel that begins anew, and what it must
        know. UsageError if it can do nothing here."""
        memory = self.following
        if memory is None or not self.needs_source:
            raise UsageError(f"no memory follows: session {self.name} is {self.state}")
        await self.source.detach()
        memory.begin_anew()
        self.source.begin_anew([messages.State(self.state), *memory.lacking(), *memory.wanted()])
        self._log.warning("another imgproxy sends on what follows", bytes=memory.total - memory.here)

    async def until_over(self) -> None:
        """Wait until nothing can follow."""
        await self.changes.wait_until(lambda: self.over)

    async def until_told(self) -> None:
        """If the session is over: wait until its source knows."""
        await self.changes.wait_until(lambda: not self.over or not self.source.attached)

    async def run(self, source_timeout: float) -> None:
        """Live until the session is over and its proxy knows; then give everything back."""
        try:
            async with flat_nursery() as nursery:
                nursery.start_soon(self.source.send_outbox)
                nursery.start_soon(self._give_up_without_source, source_timeout)
                await self.changes.wait_until(lambda: is_final(self.state))
                with trio.move_on_after(LINGER):
                    await self.changes.wait_until(lambda: self.source.said_goodbye or not self.source.attached)
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self.source.detach()
                await self.changes.wait_until(lambda: not self._readers and not self.source.attached)
            self.store.arena.close()
            self.source.close()

    async def _give_up_without_source(self, timeout: float) -> None:
        while True:
            with trio.move_on_after(timeout):
                await self.changes.wait_until(lambda: self.source.attached)
            if not self.source.attached and not is_final(self.state) and self.state not in AFTER_COMMIT:
                if not self.in_doubt:
                    self.abort(f"the source has been gone for {timeout:.0f} s")
                    return
                self._log.warning("the source is gone and may have committed: waiting for its word", state=self.state)
            await self.changes.wait_until(lambda: self.source.attached)
            await self.changes.wait_until(lambda: not self.source.attached)

    # ---- inside ----

    def _advance(self, state: SessionState, detail: str = "", **facts: object) -> None:
        then = advance(self.state, state)
        self._record.write(then, detail=detail, **facts)
        self.state = then
        self._record.reached(state)
        gone = state in (SessionState.ABORTED, SessionState.LOST)
        self._log.info(state.value, **({"reason": detail} if gone else {}))
        self._promised |= state is SessionState.RESTORED or not self.wait_restored
        if state is SessionState.COMPLETE:
            detail = "none" if self.attempt is None else "hooked" if self.attempt.hooked else "unhooked"
        self.source.say(messages.State(state, detail))
        self.changes.notify()
        self.on_news()

    def _check_receiving(self, what: str) -> None:
        if self.state is not SessionState.RECEIVING:
            raise RemoteProtocolError(f"{what} for a session that is {self.state}")
