"""A page server for `criu pre-dump` and `criu dump`: the pages of a round, as the images that CRIU would have written.

CRIU connects once for each round and brings, task by task, the extents of its memory: pages, and references to the
round before. The pages of each are one image, which goes straight on, from CRIU's socket to the link; the extents make
its pagemap, which follows. CLOSE is answered when the cache holds all of it: a dump kills the process after that.

What the round before has is answered from what was sent in it. After a round that failed nothing may be referred to:
CRIU's dirty tracking began anew with it.
"""

from collections.abc import Awaitable, Callable

import trio

from imgnode.nursery import flat_nursery
from imgnode.pipes import Pipe, splice_some
from imgproxy.sender import ImageSender
from imgwire.errors import RemoteProtocolError
from imgwire.page_server import PageServerConnection
from imgwire.page_server_messages import Abandoned, Closing, Extent, PagemapId, PagemapOpened, ParentAsked
from transform.images.pagemap import PagemapWriter

Check = Callable[[], Awaitable[None]]


class _Pagemap:
    """A pagemap that is open: its extents so far, and the pipe through which its pages go."""

    def __init__(self, pages_id: int) -> None:
        self.writer = PagemapWriter(pages_id)
        self.pages = f"pages-{pages_id}.img"
        self.pipe = Pipe()
        self.sent = trio.Event()

    def end(self) -> None:
        """Nothing more comes of its pages."""
        if self.pipe.writer >= 0:
            self.pipe.close_writer()


class PageServer:
    """Takes the rounds of one migration, each on a socket of its own."""

    def __init__(self, sender: ImageSender, sync: Callable[[], Awaitable[None]]) -> None:
        self._sender, self._sync = sender, sync
        self._before: set[PagemapId] = set()  # what the last good round has
        self._now: dict[PagemapId, _Pagemap] = {}
        self.whole = False  #: all of this round is at the cache
        self.failure = ""  #: what CRIU did wrong in this round
        self.began_at: float | None = None  #: when CRIU said the first word of this round: the tasks are frozen

    def begin(self, *, refers: bool = True) -> None:
        """Another round; `refers`: its CRIU knows which one was before."""
        self._now, self.whole, self.failure, self.began_at = {}, False, "", None
        if not refers:
            self._before = set()

    def end(self, *, good: bool) -> None:
        """CRIU has ended: whether the next round may refer to this one."""
        self._before = set(self._now) if good and self.whole else set()

    async def take(self, sock: trio.socket.SocketType, may_close: Check = trio.lowlevel.checkpoint) -> None:
        """Serve one CRIU, and hang up: it must not wait for us, whatever has become of us, with frozen tasks. What it
        does wrong, and be it that it does not connect, leaves a failed round, whose images have all ended.

        `may_close` is asked when CRIU has said all; RemoteProtocolError of it says why its CLOSE is not answered: then
        a dump lets its tasks run on.
        """
        try:
            async with flat_nursery() as nursery:
                with sock:
                    try:
                        await self._serve(sock, nursery, may_close)
                    except RemoteProtocolError as error:
                        self._fail(str(error))
                    except (ConnectionResetError, BrokenPipeError):
                        self._fail("criu left with words of ours unread")
        finally:
            for opened in self._now.values():
                opened.pipe.close()

    def _fail(self, reason: str) -> None:
        self.failure = reason
        for opened in self._now.values():
            opened.end()

    async def _serve(self, sock: trio.socket.SocketType, nursery: trio.Nursery, may_close: Check) -> None:
        connection, current = PageServerConnection(), None
        while True:
            if current and connection.body_left:
                await self._pages(sock, connection, current)
                continue
            data = await sock.recv(connection.wanted)
            self.began_at = self.began_at or trio.current_time()
            for event in connection.receive_data(data) if data else connection.receive_eof():
                match event:
                    case Abandoned(where):
                        raise RemoteProtocolError(f"criu left {where}")
                    case ParentAsked(pagemap):
                        await sock.send(connection.answer_parent(pagemap in self._before))
                    case PagemapOpened(pagemap, asks):
                        current = await self._open(pagemap, current, nursery)
                        if asks:
                            await sock.send(connection.answer_open(pagemap in self._before))
                    case Extent(_, address, pages, flags) if current:
                        current.writer.add(address, pages, flags)
                    case Closing(forced):
                        await may_close()
                        await self._close(current)
                        await sock.send(connection.answer_close(0))
                        await _hang_up(sock, connection, forced=forced)
                        return

    async def _pages(self, sock: trio.socket.SocketType, connection: PageServerConnection, pagemap: _Pagemap) -> None:
        """Move some of the payload that is due."""
        moved = await splice_some(sock.fileno(), pagemap.pipe, connection.body_left)
        if not moved:
            connection.receive_eof()
            raise RemoteProtocolError(f"criu left in the middle of {pagemap.pages}")
        connection.body_bypassed(moved)
        await trio.lowlevel.checkpoint()

    async def _open(self, pagemap: PagemapId, before: _Pagemap | None, nursery: trio.Nursery) -> _Pagemap:
        await _end(before)
        opened = self._now[pagemap] = _Pagemap(len(self._now) + 1)
        nursery.start_soon(self._send, opened)
        return opened

    async def _send(self, pagemap: _Pagemap) -> None:
        await self._sender.send_from_pipe(pagemap.pages, pagemap.pipe.reader)
        pagemap.pipe.close()
        pagemap.sent.set()

    async def _close(self, last: _Pagemap | None) -> None:
        """All has come: send the pagemaps, and see it at the cache."""
        await _end(last)
        for pagemap, opened in self._now.items():
            await self._sender.send_changed(pagemap.image_name, opened.writer.encode())
        await self._sync()
        self.whole = True


async def _hang_up(sock: trio.socket.SocketType, connection: PageServerConnection, *, forced: bool) -> None:
    """CRIU hangs up once it has our answer, which a reset could take from it; unless it has asked us to do that."""
    while not forced and (data := await sock.recv(connection.wanted or 1)):
        connection.receive_data(data)


async def _end(pagemap: _Pagemap | None) -> None:
    """Its pages have all come: see them sent."""
    if pagemap is not None:
        pagemap.end()
        await pagemap.sent.wait()
