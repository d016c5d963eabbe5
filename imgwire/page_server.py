"""CRIU's page server protocol as the server speaks it, sans I/O: rounds of pages come in, pages asked for go out.

`criu pre-dump|dump --page-server` connects once and, for each pagemap, asks whether the round before has it, opens it
and adds its extents in ascending order, page payload right behind the header of those that are present. It waits for
each answer; after that to CLOSE the process runs on, or is killed. So `answer_close` is for when the pages are safe.
`criu lazy-pages` (and whoever takes pages from `criu dump --lazy-pages`) speaks the same headers the other way round:
it asks for pages, without waiting for those it has asked for, and gets them in that order.

Payload need not pass through here: see `body_left`. Source: recordings of CRIU 4.1.1 and 4.2.1.
"""

import struct
from collections import deque
from enum import Enum, auto
from typing import TypeVar

from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.page_server_messages import (
    MAX_ADDRESS,
    MAX_ASKED_PAGES,
    MAX_EXTENT_PAGES,
    PAGE_SIZE,
    Abandoned,
    Closing,
    Command,
    Extent,
    Header,
    Layout,
    PageBytes,
    PageFlag,
    PagemapId,
    PagemapOpened,
    PagesAsked,
    PageServerEvent,
    ParentAsked,
    check_pid,
    layout_of,
)

#: Most pagemaps in a round: one for each process and each shared mapping. Bounds what we remember of them.
MAX_PAGEMAPS = 1 << 16
#: Most requests for pages that wait for their answer: one for each thread, and more in a process that has 65,000 would
#: be a first. Bounds what we remember of them.
MAX_WAITING = 1 << 16

_NUMBER = struct.Struct("<i")


class Purpose(Enum):
    """Which commands a connection is for."""

    ROUND = auto()  #: `criu pre-dump` or `criu dump` brings pages
    LAZY = auto()  #: `criu lazy-pages` asks for pages


_Request = ParentAsked | PagemapOpened | PagesAsked | Closing
_R = TypeVar("_R", ParentAsked, PagemapOpened, PagesAsked, Closing)

_ENDS = (Command.CLOSE, Command.FORCE_CLOSE)
_ALLOWED = {Purpose.ROUND: frozenset(Command) - {Command.GET}, Purpose.LAZY: frozenset({Command.GET, *_ENDS})}
_OLD_FLAGS = {Command.ADD: PageFlag.PRESENT, Command.HOLE: PageFlag.PARENT}


class PageServerConnection:
    """One connection of a CRIU run to our page server."""

    def __init__(self, purpose: Purpose = Purpose.ROUND) -> None:
        self._allowed = _ALLOWED[purpose]
        self._layout = Layout.NARROW
        self._settled = False  # whether a first header has told the layout
        self._buffer = bytearray()
        self._body = 0
        self._spare = 0  # bytes of a header that may be longer than we know
        self._round = _Round()
        self._waiting: deque[_Request] = deque()
        self._closed = False

    @property
    def body_left(self) -> int:
        """Bytes of the present extent's payload that have not come."""
        return self._body

    @property
    def wanted(self) -> int:
        """Bytes that are due next and are no payload: 0 where payload is, while an answer is due and at the end."""
        if self._closed:
            return self._spare
        return 0 if self._body or self._blocked else self._layout.size - len(self._buffer)

    def receive_data(self, data: bytes) -> list[PageServerEvent]:
        """Take any bytes; return what they mean. RemoteProtocolError if that is nothing a client may say now."""
        events: list[PageServerEvent] = []
        view = memoryview(data)
        while view:
            used, found = self._take(view)
            events += found
            view = view[used:]
        return events

    def body_bypassed(self, size: int) -> None:
        """`size` bytes of the present payload were taken from the connection by other means."""
        if not 0 <= size <= self._body:
            raise LocalProtocolError(f"{size} bytes bypassed where {self._body} are left")
        self._body -= size

    def receive_eof(self) -> list[PageServerEvent]:
        """The client closed: nothing after the answer to its CLOSE, else it is `Abandoned`."""
        closed, self._closed = self._closed, True
        return [] if closed else [Abandoned(self._where())]

    def answer_parent(self, exists: bool) -> bytes:
        """Whether the round before has the pagemap asked for. If so, the client may refer to its pages."""
        self._round.allow_parent(self._answered(ParentAsked).pagemap, exists)
        return _NUMBER.pack(exists)

    def answer_open(self, exists: bool) -> bytes:
        """Whether the round before has the pagemap just opened. If so, the client may refer to its pages."""
        self._round.allow_parent(self._answered(PagemapOpened).pagemap, exists)
        return bytes([exists])

    def answer_close(self, status: int) -> bytes:
        """0: all is well and safe; else the dump fails and the process runs on."""
        self._answered(Closing)
        self._closed = True
        return _NUMBER.pack(status)

    def answer_get(self, pages: int) -> bytes:
        """What goes before the first `pages` pages of the oldest request, whose payload follows it."""
        asked = self._due(PagesAsked)
        if not 0 < pages <= asked.pages:
            raise LocalProtocolError(f"{pages} pages for a request of {asked.pages}")
        self._waiting.popleft()
        return Header(Command.ADD_F, PageFlag.PRESENT, pages, asked.address, asked.pid).encode(self._layout)

    @property
    def _blocked(self) -> bool:
        """Whether the client has nothing to say: it waits for us, or all is said."""
        return self._closed or bool(self._waiting and not isinstance(self._waiting[-1], PagesAsked))

    def _due(self, kind: type[_R]) -> _R:
        request = self._waiting[0] if self._waiting else None
        if not isinstance(request, kind):
            raise LocalProtocolError(f"an answer to {kind.__name__} where none is due")
        return request

    def _answered(self, kind: type[_R]) -> _R:
        request = self._due(kind)
        self._waiting.popleft()
        return request

    def _where(self) -> str:
        if self._body:
            return f"{self._body} bytes before the end of an extent of {self._round.name}"
        if self._waiting:
            return "before it was answered"
        return "in the middle of a command" if self._buffer else "without CLOSE"

    def _take(self, view: memoryview) -> tuple[int, list[PageServerEvent]]:
        if self._body:
            part = bytes(view[: self._body])
            self.body_bypassed(len(part))
            return len(part), [PageBytes(part)]
        if self._spare:
            used = min(self._spare, len(view))
            self._spare -= used
            return used, []
        if self._blocked:
            raise RemoteProtocolError(f"{len(view)} bytes came where the client has to wait, or all was said")
        part = bytes(view[: self._layout.size - len(self._buffer)])
        self._buffer += part
        return len(part), self._step() if len(self._buffer) == self._layout.size else []

    def _step(self) -> list[PageServerEvent]:
        if not self._settled:
            self._settle(bytes(self._buffer))
        if len(self._buffer) < self._layout.size:
            return []
        header = Header.decode(bytes(self._buffer), self._layout)
        self._buffer.clear()
        return [self._event(header)]

    def _settle(self, first: bytes) -> None:
        """A CLOSE that comes first does not tell: it is taken as the short one, and what may be its rest skipped."""
        layout = layout_of(first)
        self._layout, self._settled = layout or Layout.NARROW, True
        if layout is None:
            self._spare = Layout.WIDE.size - Layout.NARROW.size

    def _event(self, header: Header) -> PageServerEvent:
        if header.command not in self._allowed:
            raise RemoteProtocolError(f"{header.command.name} on a connection that is not for it")
        match header.command:
            case Command.PARENT:
                return self._asked(ParentAsked(PagemapId.decode(header.target)))
            case Command.OPEN | Command.OPEN2:
                return self._opened(header)
            case Command.GET:
                check_pid(header.target)
                header.check_pages(MAX_ASKED_PAGES)
                return self._asked(PagesAsked(header.target, header.address, header.pages))
            case Command.CLOSE | Command.FORCE_CLOSE:
                return self._asked(Closing(header.command is Command.FORCE_CLOSE))
        extent = self._round.extent(header)
        self._body = extent.size
        return extent

    def _opened(self, header: Header) -> PageServerEvent:
        pagemap = PagemapId.decode(header.target)
        self._round.open(pagemap)
        if header.command is Command.OPEN2:
            return self._asked(PagemapOpened(pagemap, asks=True))
        self._round.allow_parent(pagemap, True)  # it has other means to know
        return PagemapOpened(pagemap, asks=False)

    def _asked(self, request: _Request) -> _Request:
        if len(self._waiting) == MAX_WAITING:
            raise RemoteProtocolError(f"more than {MAX_WAITING} requests for pages at once")
        self._waiting.append(request)
        return request


class _Round:
    """The pagemaps of a round, as far as they have come."""

    def __init__(self) -> None:
        self._pagemap: PagemapId | None = None
        self._end = 0
        self._opened: set[PagemapId] = set()
        self._parents: set[PagemapId] = set()

    @property
    def name(self) -> str:
        """The image name of the pagemap that is open."""
        return self._pagemap.image_name if self._pagemap else "no pagemap"

    def allow_parent(self, pagemap: PagemapId, exists: bool) -> None:
        """What was answered: extents may refer to the round before, or not."""
        if exists:
            self._parents.add(pagemap)

    def open(self, pagemap: PagemapId) -> None:
        """Its extents follow, for the first and only time."""
        if pagemap in self._opened:
            raise RemoteProtocolError(f"{pagemap.image_name} is opened twice in a round")
        if len(self._opened) == MAX_PAGEMAPS:
            raise RemoteProtocolError(f"more than {MAX_PAGEMAPS} pagemaps in a round")
        self._opened.add(pagemap)
        self._pagemap, self._end = pagemap, 0

    def extent(self, header: Header) -> Extent:
        """An extent of the open pagemap; RemoteProtocolError unless it follows those before it."""
        flags = _OLD_FLAGS.get(header.command, header.flags)
        pagemap = PagemapId.decode(header.target)
        if pagemap != self._pagemap:
            raise RemoteProtocolError(f"pages of {pagemap.image_name} where {self.name} is open")
        header.check_pages(MAX_EXTENT_PAGES if flags & PageFlag.PRESENT else MAX_ADDRESS // PAGE_SIZE)
        if header.address < self._end:
            raise RemoteProtocolError(f"{self.name}: pages at {header.address:#x}, the last ones end at {self._end:#x}")
        self._check_flags(flags, pagemap)
        self._end = header.end
        return Extent(pagemap, header.address, header.pages, flags)

    def _check_flags(self, flags: PageFlag, pagemap: PagemapId) -> None:
        if not flags or (flags & PageFlag.PRESENT and flags & PageFlag.PARENT):
            raise RemoteProtocolError(f"{self.name}: an extent with flags {int(flags)}")
        if flags & PageFlag.PARENT and pagemap not in self._parents:
            raise RemoteProtocolError(f"{self.name}: pages as in a round before, which it was not told to have")
