"""The page server's side of CRIU's protocol: recorded rounds, any round in any split, and what no client may say."""

from dataclasses import dataclass, field
from io import BytesIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire import page_server
from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.page_server import PageServerConnection, Purpose
from imgwire.page_server_messages import (
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
    PagemapKind,
    PagemapOpened,
    PagesAsked,
    PageServerEvent,
    ParentAsked,
)
from tests.imgwire.page_server_rounds import (
    EXPECTED,
    LAZY,
    PARENT,
    PRESENT,
    RECORDED,
    RECORDED_REQUESTS,
    Meaning,
    header,
    rounds,
    turns,
)

pytestmark = pytest.mark.t0

TASK = PagemapId(PagemapKind.TASK, 7)
SHMEM = PagemapId(PagemapKind.SHMEM, 98304)


@dataclass
class Server:
    """Answers everything at once, and gathers what came."""

    connection: PageServerConnection = field(default_factory=PageServerConnection)
    parents: bool = False
    asked: list[PagemapId] = field(default_factory=list)
    opened: Meaning = field(default_factory=dict)
    answers: bytes = b""
    closing: Closing | None = None

    def take(self, data: bytes) -> None:
        """Some bytes of the client."""
        for event in self.connection.receive_data(data):
            self._take(event)

    def _take(self, event: PageServerEvent) -> None:
        match event:
            case ParentAsked(pagemap):
                self.asked.append(pagemap)
                self.answers += self.connection.answer_parent(self.parents)
            case PagemapOpened(pagemap, asks):
                self.opened[pagemap] = []
                self.answers += self.connection.answer_open(self.parents) if asks else b""
            case Extent(pagemap):
                self.opened[pagemap].append((event, b""))
            case PageBytes(data):
                extents = self.opened[list(self.opened)[-1]]
                extents[-1] = (extents[-1][0], extents[-1][1] + data)
            case Closing():
                self.closing = event
                self.answers += self.connection.answer_close(0)


def talk(server: Server, said: list[bytes], step: int) -> None:
    """Say it all, `step` bytes at a time, waiting where a client does."""
    for turn in said:
        for at in range(0, len(turn), step):
            server.take(turn[at : at + step])


@pytest.mark.parametrize("version", RECORDED)
@pytest.mark.parametrize("step", [1, 23, 4099, 1 << 20])
def test_recorded_rounds(version: str, step: int) -> None:
    server = Server()
    talk(server, turns(RECORDED[version]), step)
    found = [
        (pagemap.image_name, [(one.address, one.pages, int(one.flags), data.rstrip(b"\0")) for one, data in extents])
        for pagemap, extents in server.opened.items()
    ]
    assert found == EXPECTED[version]
    for extents in server.opened.values():
        assert all(len(data) == extent.size for extent, data in extents)
    assert server.answers == b"\0\0\0" + b"\0\0\0\0"
    assert server.closing == Closing(forced=False)
    assert server.connection.receive_eof() == []


@pytest.mark.parametrize("version", RECORDED)
def test_payload_may_take_another_way(version: str) -> None:
    """What the I/O around does: headers are read by `wanted`, payload is spliced."""
    connection, sizes = PageServerConnection(), []
    raw = BytesIO(b"".join(turns(RECORDED[version])))
    while data := raw.read(connection.wanted):
        for event in connection.receive_data(data):
            if isinstance(event, PagemapOpened):
                connection.answer_open(False)
        if size := connection.body_left:
            assert connection.wanted == 0
            sizes.append(len(raw.read(size)))
            connection.body_bypassed(PAGE_SIZE)
            connection.body_bypassed(size - PAGE_SIZE)
    connection.answer_close(0)
    assert sizes == [pages * PAGE_SIZE for _, extents in EXPECTED[version] for _, pages, _, _ in extents]
    with pytest.raises(LocalProtocolError):
        connection.body_bypassed(1)


@pytest.mark.parametrize("version", RECORDED_REQUESTS)
@pytest.mark.parametrize("step", [1, 24, 100])
def test_recorded_requests_for_pages(version: str, step: int) -> None:
    connection, events = PageServerConnection(Purpose.LAZY), []
    raw = bytes.fromhex(RECORDED_REQUESTS[version])
    for at in range(0, len(raw), step):
        events += connection.receive_data(raw[at : at + step])
    expected = {
        "4.1.1": [PagesAsked(32759, 0x7F36E51F7000, 1), PagesAsked(32759, 0x55BDE6AAE000, 16)],
        "4.2.1": [PagesAsked(410, 0x7FA4DF274000, 1), PagesAsked(410, 0x55B138A04000, 16)],
    }
    assert events == expected[version]
    answers = connection.answer_get(1).hex() + connection.answer_get(15).hex()
    assert (
        answers
        == {
            "4.1.1": "060004000100000000701fe5367f0000f77f000000000000060004000f00000000e0aae6bd550000f77f000000000000",
            "4.2.1": "06000400000000000100000000000000004027dfa47f00009a01000000000000"
            "06000400000000000f000000000000000040a038b15500009a01000000000000",
        }[version]
    )


@pytest.mark.parametrize("layout", Layout)
def test_a_pre_dump_asks_first_and_refers_to_the_round_before(layout: Layout) -> None:
    server = Server(parents=True)
    ask, opening = Header(Command.PARENT, target=TASK.encode()), Header(Command.OPEN2, target=TASK.encode())
    server.take(ask.encode(layout))
    server.take(opening.encode(layout))
    server.take(
        Header(Command.ADD_F, PARENT, 1 << 20, 0x1000, TASK.encode()).encode(layout)
        + Header(Command.ADD_F, LAZY, 5, 1 << 33, TASK.encode()).encode(layout)
        + Header(Command.FORCE_CLOSE).encode(layout)
    )
    assert server.asked == [TASK]
    assert [extent for extent, _ in server.opened[TASK]] == [
        Extent(TASK, 0x1000, 1 << 20, PARENT),
        Extent(TASK, 1 << 33, 5, LAZY),
    ]
    assert server.answers == bytes.fromhex("01000000 01 00000000")
    assert server.closing == Closing(forced=True)


def test_old_clients() -> None:
    """They do not ask, and their ids have other numbers."""
    server, target = Server(), 7 << 8 | 11
    server.take(
        Header(Command.OPEN, target=target).encode(Layout.NARROW)
        + Header(Command.HOLE, pages=2, address=0x1000, target=target).encode(Layout.NARROW)
        + Header(Command.ADD, pages=1, address=0x3000, target=target).encode(Layout.NARROW)
        + b"x" * PAGE_SIZE
        + Header(Command.CLOSE).encode(Layout.NARROW)
    )
    assert server.opened[TASK] == [
        (Extent(TASK, 0x1000, 2, PARENT), b""),
        (Extent(TASK, 0x3000, 1, PRESENT), b"x" * PAGE_SIZE),
    ]
    assert server.answers == b"\0\0\0\0"


@given(rounds(), st.data())
def test_any_round_in_any_split(round_: tuple[list[bytes], Meaning], data: st.DataObject) -> None:
    said, meant = round_
    server = Server(parents=True)
    for turn in said:
        cuts = data.draw(st.lists(st.integers(0, len(turn)), max_size=20))
        at = 0
        for cut in [*sorted(cuts), len(turn)]:
            server.take(turn[at:cut])
            at = cut
    assert server.opened == meant
    assert server.closing == Closing(forced=False) and server.connection.receive_eof() == []


@given(st.binary(max_size=200), st.sampled_from(Purpose))
def test_garbage_is_garbage(raw: bytes, purpose: Purpose) -> None:
    connection = PageServerConnection(purpose)
    try:
        connection.receive_data(raw)
    except RemoteProtocolError as error:
        assert str(error)


@given(st.lists(st.tuples(st.sampled_from(Command), st.integers(0, 7), *[st.sampled_from([0, 1, 0x1000, 0x701])] * 3)))
def test_any_commands_give_events_or_the_error(commands: list[tuple[Command, int, int, int, int]]) -> None:
    server = Server(parents=True)
    try:
        for command, flags, pages, address, target in commands:
            server.take(Header(command, PageFlag(flags), pages, address, target).encode(Layout.NARROW))
            server.take(bytes(server.connection.body_left))
    except RemoteProtocolError as error:
        assert str(error)
    for extents in server.opened.values():
        assert all(len(data) == extent.size for extent, data in extents)


def opened(layout: Layout = Layout.NARROW, *, parent: bool = False) -> PageServerConnection:
    """A connection with a pagemap open."""
    connection = PageServerConnection()
    connection.receive_data(header(layout, Command.OPEN2, TASK))
    connection.answer_open(parent)
    return connection


def added(pages: int = 1, address: int = 0x5000, flags: PageFlag = PRESENT, pagemap: PagemapId = TASK) -> bytes:
    """The header of an extent."""
    return header(Layout.NARROW, Command.ADD_F, pagemap, flags, pages, address)


@pytest.mark.parametrize(
    ("said", "what"),
    [
        (added(0), "ADD_F of 0 pages"),
        (added(MAX_EXTENT_PAGES + 1), "the limit is 16384"),
        (added(1, 0x5001), "not an address"),
        (added(1, 1 << 57), "not an address"),
        (added() + b"x" * PAGE_SIZE + added(), "at 0x5000, the last ones end at 0x6000"),
        (added(3, flags=LAZY) + added(1, 0x7000), "at 0x7000, the last ones end at 0x8000"),
        (added(pagemap=SHMEM), r"pages of pagemap-shmem-98304\.img where pagemap-7\.img is open"),
        (added(flags=PRESENT & LAZY), "an extent with flags 0"),
        (added(flags=PRESENT | PARENT), "an extent with flags 5"),
        (added(flags=PARENT), r"pagemap-7\.img: pages as in a round before"),
        (added(flags=PageFlag(12)), "flag 0x8: compressed pages"),
        (header(Layout.NARROW, Command.OPEN2, TASK), r"pagemap-7\.img is opened twice"),
        (header(Layout.NARROW, Command.GET, TASK, pages=1, address=0x1000), "GET on a connection that is not for it"),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", "command 0x4547"),
    ],
)
def test_what_no_client_says(said: bytes, what: str) -> None:
    connection = opened()
    with pytest.raises(RemoteProtocolError, match=what):
        connection.receive_data(said)


def test_pages_of_no_pagemap() -> None:
    with pytest.raises(RemoteProtocolError, match="where no pagemap is open"):
        PageServerConnection().receive_data(added())


@pytest.mark.parametrize(
    ("request_", "answers"),
    [
        (Header(Command.PARENT, target=TASK.encode()), 4),
        (Header(Command.OPEN2, target=TASK.encode()), 1),
    ],
)
def test_a_client_has_to_wait_for_its_answer(request_: Header, answers: int) -> None:
    connection, close = PageServerConnection(), Header(Command.CLOSE).encode(Layout.NARROW)
    connection.receive_data(request_.encode(Layout.NARROW))
    assert connection.wanted == 0
    with pytest.raises(RemoteProtocolError, match="24 bytes came where the client has to wait"):
        connection.receive_data(close)
    answer = connection.answer_parent if request_.command is Command.PARENT else connection.answer_open
    assert answer(True) == b"\x01".ljust(answers, b"\0")
    assert connection.wanted == 24
    assert connection.receive_data(close) == [Closing(forced=False)]
    with pytest.raises(LocalProtocolError, match="where none is due"):
        answer(True)
    assert connection.answer_close(-1) == b"\xff\xff\xff\xff"
    assert connection.wanted == 0
    with pytest.raises(RemoteProtocolError, match="all was said"):
        connection.receive_data(b"\0")


def test_no_answer_where_none_is_due() -> None:
    connection = opened()
    for answer in (connection.answer_parent, connection.answer_open):
        with pytest.raises(LocalProtocolError):
            answer(True)
    for number in (connection.answer_close, connection.answer_get):
        with pytest.raises(LocalProtocolError):
            number(1)


@pytest.mark.parametrize("layout", Layout)
def test_a_dump_that_fails_before_its_first_pagemap(layout: Layout) -> None:
    """Its CLOSE does not tell its length: what may be the rest is skipped, however it comes."""
    raw = Header(Command.CLOSE).encode(layout)
    for cut in range(1, len(raw) + 1):
        connection = PageServerConnection()
        events = connection.receive_data(raw[:cut])
        events += connection.receive_data(raw[cut:])
        assert events == [Closing(forced=False)]
        assert connection.wanted == 0
        assert connection.answer_close(0) == b"\0\0\0\0"
        assert connection.wanted == (8 if layout is Layout.NARROW else 0)
        assert connection.receive_eof() == []


@pytest.mark.parametrize(
    ("said", "where"),
    [
        (b"", "without CLOSE"),
        (added(2) + b"x" * 5000, r"3192 bytes before the end of an extent of pagemap-7\.img"),
        (added()[:5], "in the middle of a command"),
        (Header(Command.CLOSE).encode(Layout.NARROW), "before it was answered"),
    ],
)
def test_a_client_that_goes_before_its_close_is_answered_has_failed(said: bytes, where: str) -> None:
    connection = opened()
    connection.receive_data(said)
    (event,) = connection.receive_eof()
    assert isinstance(event, Abandoned)
    assert event.where == where.replace("\\", "")


def test_requests_for_pages_are_answered_in_order_close_last() -> None:
    connection = PageServerConnection(Purpose.LAZY)
    ask = Header(Command.GET, pages=4, address=0x1000, target=7).encode(Layout.NARROW)
    close = Header(Command.CLOSE).encode(Layout.NARROW)
    assert connection.receive_data(ask + ask + close) == [PagesAsked(7, 0x1000, 4)] * 2 + [Closing(forced=False)]
    assert connection.wanted == 0
    with pytest.raises(LocalProtocolError):
        connection.answer_close(0)
    assert Header.decode(connection.answer_get(2), Layout.NARROW) == Header(Command.ADD_F, PRESENT, 2, 0x1000, 7)
    connection.answer_get(4)
    assert connection.answer_close(0) == b"\0\0\0\0"


@pytest.mark.parametrize("pages", [0, 5])
def test_an_answer_has_what_was_asked_for(pages: int) -> None:
    connection = PageServerConnection(Purpose.LAZY)
    connection.receive_data(Header(Command.GET, pages=4, address=0x1000, target=7).encode(Layout.NARROW))
    with pytest.raises(LocalProtocolError, match=f"{pages} pages for a request of 4"):
        connection.answer_get(pages)
    assert connection.answer_get(4)


@pytest.mark.parametrize(
    ("request_", "what"),
    [
        (Header(Command.GET, pages=MAX_ASKED_PAGES + 1, address=0x1000, target=7), "GET of 2049 pages"),
        (Header(Command.GET, pages=1, address=0x1000), "0 is no pid"),
        (Header(Command.GET, pages=1, address=0x1000, target=7 << 32), "is no pid"),
        (Header(Command.OPEN2, target=TASK.encode()), "OPEN2 on a connection that is not for it"),
    ],
)
def test_what_no_one_asks(request_: Header, what: str) -> None:
    with pytest.raises(RemoteProtocolError, match=what):
        PageServerConnection(Purpose.LAZY).receive_data(request_.encode(Layout.NARROW))


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_server, "MAX_WAITING", 2)
    monkeypatch.setattr(page_server, "MAX_PAGEMAPS", 1)
    ask = Header(Command.GET, pages=4, address=0x1000, target=7).encode(Layout.NARROW)
    with pytest.raises(RemoteProtocolError, match="more than 2 requests"):
        PageServerConnection(Purpose.LAZY).receive_data(ask * 3)
    with pytest.raises(RemoteProtocolError, match="more than 1 pagemaps"):
        opened().receive_data(header(Layout.NARROW, Command.OPEN2, SHMEM))
