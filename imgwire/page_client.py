"""CRIU's page server protocol as a client speaks it that asks for pages, sans I/O: for `criu dump --lazy-pages`.

That CRIU has dumped everything but the pages that may follow, and answers requests for those, one after the other, in
their order, with as many pages of each as lie together at its end. A request for anything else makes it hang up, and
the tasks run on. Payload need not pass through here: see `body_left`. Source: CRIU 4.1.1 and 4.2.1, by experiment.
"""

from collections import deque
from dataclasses import dataclass

from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.page_server_messages import PAGE_SIZE, Command, Header, Layout, PageBytes, PageFlag, PagesAsked


@dataclass(frozen=True)
class PagesCome:
    """The payload of the oldest request follows: `pages` pages, fewer than were asked for perhaps."""

    pid: int
    address: int
    pages: int


PageClientEvent = PagesCome | PageBytes


class PageClient:
    """One connection to the page server of a CRIU that speaks `layout`."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._asked: deque[PagesAsked] = deque()
        self._buffer = bytearray()
        self._body = 0

    @property
    def body_left(self) -> int:
        """Bytes of payload that are due next."""
        return self._body

    @property
    def wanted(self) -> int:
        """Bytes that are due next and are no payload."""
        return 0 if self._body or not self._asked else self._layout.size - len(self._buffer)

    def get(self, pid: int, address: int, pages: int) -> bytes:
        """What asks for these pages."""
        self._asked.append(PagesAsked(pid, address, pages))
        return Header(Command.GET, pages=pages, address=address, target=pid).encode(self._layout)

    def receive_data(self, data: bytes) -> list[PageClientEvent]:
        """Take any bytes; return what they mean. RemoteProtocolError if they answer nothing that was asked."""
        events: list[PageClientEvent] = []
        view = memoryview(data)
        while view:
            if self._body:
                part = bytes(view[: self._body])
                self.body_bypassed(len(part))
                events.append(PageBytes(part))
            else:
                part = bytes(view[: self.wanted])
                if not part:
                    raise RemoteProtocolError(f"{len(view)} bytes from a page server that was asked for nothing")
                self._buffer += part
                events += self._step()
            view = view[len(part) :]
        return events

    def body_bypassed(self, size: int) -> None:
        """`size` bytes of payload were taken from the connection by other means."""
        if not 0 <= size <= self._body:
            raise LocalProtocolError(f"{size} bytes bypassed where {self._body} are left")
        self._body -= size

    def _step(self) -> list[PageClientEvent]:
        if len(self._buffer) < self._layout.size:
            return []
        header, asked = Header.decode(bytes(self._buffer), self._layout), self._asked.popleft()
        self._buffer.clear()
        whose = (header.command, header.target, header.address)
        if whose != (Command.ADD_F, asked.pid, asked.address) or header.flags != PageFlag.PRESENT:
            raise RemoteProtocolError(
                f"{header.command.name} for {header.address:#x} of process {header.target} answers a request for "
                f"{asked.address:#x} of process {asked.pid}"
            )
        if not 0 < header.pages <= asked.pages:
            raise RemoteProtocolError(f"{header.pages} pages answer a request for {asked.pages}")
        self._body = header.pages * PAGE_SIZE
        return [PagesCome(asked.pid, asked.address, header.pages)]
