"""Post-copy, the source's part: the process runs at the destination first, its memory follows.

    images complete -> restored there -> stopped here, journalled -> commit -> pages follow -> needed no more -> killed

`criu dump --lazy-pages` keeps the pages that may follow and serves them to us over a socket that it inherits, with the
tree frozen. It runs with --leave-running: whatever ends it, our death too, which closes the socket, lets the tasks go;
they stop then, see stopped_tree.py.

If this program dies, the next one goes on, see send_on.py.

Pages that the process there waits for go first, all others follow in the order of their addresses. If CRIU dies after
the commit, the rest is read from the stopped processes.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio

from imgnode import proc
from imgnode.channel import PIPED_DATA, Channel
from imgnode.nursery import flat_nursery
from imgnode.pipes import Pipe
from imgnode.proc import ProcessId
from imgproxy.handover import FAILURES, Decision, Handover
from imgproxy.memory_source import MemorySource, PageServerSource, ProcessMemory, SourceGone, page_server_works
from imgproxy.page_pump import SentImage
from imgproxy.sender import ImageSender
from imgproxy.source import CacheView
from imgproxy.stopped_tree import SETTLED, StoppedTree
from imgwire.messages import Pages
from imgwire.page_ranges import PageRange, PageRanges
from imgwire.page_server_messages import PAGE_SIZE, Layout
from transform.images.pagemap import extents_at_source, is_wide, task_of

#: Pages asked of CRIU at once: a frame of the link.
CHUNK = PIPED_DATA // PAGE_SIZE
#: Runs of pages that somebody waits for, after which other pages get their turn: a process that waits again and again
#: must not keep the rest from coming.
FAVOURED = 8
#: Bytes that may be under way before pages that nobody waits for must wait, so that those that somebody waits for are
#: soon there: 30 ms at 1 Gbit/s.
AHEAD = 4 << 20

_log = structlog.get_logger()


class PostCopy:
    """One migration whose memory follows."""

    def __init__(
        self, channel: Channel, sender: ImageSender, view: CacheView, handover: Handover, tree: StoppedTree
    ) -> None:
        self._channel, self._sender, self._view = channel, sender, view
        self._handover, self._tree = handover, tree
        self._pagemaps: dict[str, bytearray] = {}
        self._left = PageRanges()  # not asked of CRIU yet
        self._urgent: deque[PageRange] = deque()
        self._favoured = 0  # runs of urgent pages since the last others
        self._source: MemorySource = ProcessMemory([])
        self._memory: SentImage | None = None
        self.total = 0  #: bytes of the memory that follows

    @property
    def left(self) -> int:
        """Bytes that have not left this node."""
        return self._left.size + sum(each.end - each.start for each in self._urgent)

    def see(self, name: str, data: bytes) -> None:
        """Some of a small image goes out: pagemaps tell which pages stay."""
        if task_of(name) is not None:
            self._pagemaps.setdefault(name, bytearray()).extend(data)

    async def announce(self) -> None:
        """Tell the cache, before anything else."""
        self._memory = await self._sender.announce_memory()

    async def run(self, sock: trio.socket.SocketType, init: int) -> None:
        """From the first image to the end of the hand-over of the tree under `init`. CRIU serves pages on `sock`."""
        handover = self._handover
        async with flat_nursery() as nursery:
            nursery.start_soon(self._end_when_aborted, nursery.cancel_scope)
            await handover.changes.wait_until(lambda: handover.serving)
            self._begin(sock, await trio.to_thread.run_sync(proc.tree, init))
            nursery.start_soon(self._follow)
            await self._tree.hand_over(init, kept=False)
            nursery.cancel_scope.cancel()

    async def go_on(self) -> None:
        """Another imgproxy has died after the commit: send, from the stopped processes, what the cache lacks, until the
        destination needs us no more, or there is nothing to send it from. LinkLost, SessionAborted."""
        view = self._view
        await view.wait_for(lambda: bool(view.lacking) and not view.lacking[-1].more)
        for told in view.lacking:
            for pid, address, pages in told:
                self._left.add(pid, address, address + pages * PAGE_SIZE)
        self._memory = self._sender.take_up_memory(view.lacking[0].image, view.lacking[0].offset)
        self._source, self.total = ProcessMemory(self._tree.tasks), self._left.size
        async with flat_nursery() as nursery:

            async def follow() -> None:
                await self._follow()
                nursery.cancel_scope.cancel()

            nursery.start_soon(follow)
            await view.wait_for(lambda: view.state in SETTLED)
            nursery.cancel_scope.cancel()

    def criu_ended(self, reason: str) -> None:
        """`criu dump` has ended: before the commit, that is the end of the hand-over, for the tasks run on here."""
        self._handover.abort(reason)

    def _begin(self, sock: trio.socket.SocketType, tree: list[ProcessId]) -> None:
        """All pagemaps have passed by."""
        layout = Layout.NARROW
        for name, data in self._pagemaps.items():
            pid = task_of(name)
            assert pid is not None
            layout = Layout.WIDE if is_wide(name, bytes(data)) else layout
            for start, end in extents_at_source(name, bytes(data)):
                self._left.add(pid, start, end)
        self._pagemaps.clear()
        self.total = self._left.size
        self._source = PageServerSource(sock, layout) if page_server_works() else ProcessMemory(tree)

    async def _end_when_aborted(self, scope: trio.CancelScope) -> None:
        await self._handover.changes.wait_until(lambda: self._handover.decision is Decision.ABORTED)
        scope.cancel()

    # ---- pages ----

    async def _follow(self) -> None:
        """Send pages: those that are wanted, and after the commit all others."""
        assert self._memory is not None
        pipe = Pipe()
        try:
            async with flat_nursery() as nursery:
                nursery.start_soon(self._sender.send_memory, self._memory, pipe.reader)
                while True:
                    await self._move(await self._next(), pipe)
        except (SourceGone, *FAILURES) as error:
            if self._handover.decision is not Decision.COMMITTED:
                self._handover.abort(str(error))
                return
            _log.error("the memory that is left cannot be sent", error=str(error))
        finally:
            pipe.close()

    async def _next(self) -> PageRange:
        """What goes next, taken from what is left."""
        while True:
            self._sort_wanted()
            background = self._handover.decision is Decision.COMMITTED and self._left.first(CHUNK)
            room = self._channel.kept_bytes <= AHEAD
            if self._urgent and not (background and room and self._favoured >= FAVOURED):
                self._favoured += 1
                return self._urgent.popleft()
            if background and room:
                self._favoured = 0
                self._left.take(*background)
                return background
            await self._news(room=bool(background))

    def _sort_wanted(self) -> None:
        while self._view.wanted:
            wanted = self._view.wanted.popleft()
            end = wanted.address + wanted.pages * PAGE_SIZE
            for part in self._left.take(wanted.pid, wanted.address, end):
                for start in range(part.start, part.end, CHUNK * PAGE_SIZE):
                    self._urgent.append(PageRange(part.pid, start, min(part.end, start + CHUNK * PAGE_SIZE)))

    async def _news(self, *, room: bool = False) -> None:
        """Wait for pages that are wanted, for the commit if there was none, or for room on the link."""
        decided = self._handover.decision
        async with flat_nursery() as nursery:

            async def wait(condition: Callable[[], Awaitable[None]]) -> None:
                await condition()
                nursery.cancel_scope.cancel()

            nursery.start_soon(wait, lambda: self._view.changes.wait_until(lambda: bool(self._view.wanted)))
            nursery.start_soon(
                wait, lambda: self._handover.changes.wait_until(lambda: self._handover.decision is not decided)
            )
            if room:
                nursery.start_soon(wait, lambda: self._channel.wait_acknowledged(AHEAD))

    async def _move(self, one: PageRange, pipe: Pipe) -> None:
        pages = await self._from_source(lambda source: source.ask(one))
        come = PageRange(one.pid, one.start, one.start + pages * PAGE_SIZE)
        if come.end < one.end:
            self._left.add(one.pid, come.end, one.end)
        await self._channel.send(Pages(one.pid, one.start, pages))
        while come.start < come.end:
            moved = await self._from_source(partial(_move_some, come, pipe))
            come = come._replace(start=come.start + moved)
        await trio.lowlevel.checkpoint()

    async def _from_source(self, act: Callable[[MemorySource], Awaitable[int]]) -> int:
        """Do it with CRIU; if that is gone after the commit, with the stopped processes themselves."""
        try:
            return await act(self._source)
        except SourceGone as error:
            if self._handover.decision is not Decision.COMMITTED or isinstance(self._source, ProcessMemory):
                raise
            _log.warning("criu is gone: the rest is read from the stopped processes", reason=str(error))
            self._source = ProcessMemory(self._tree.tasks)
            return await act(self._source)


async def _move_some(due: PageRange, pipe: Pipe, source: MemorySource) -> int:
    return await source.move(due, pipe)
