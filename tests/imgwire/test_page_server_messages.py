"""The page server's header in both layouts, byte by byte, and what a header may not say."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire.errors import RemoteProtocolError
from imgwire.page_server_messages import (
    MAX_ADDRESS,
    MAX_ASKED_PAGES,
    PAGE_SIZE,
    Command,
    Extent,
    Header,
    Layout,
    PageFlag,
    PagemapId,
    PagemapKind,
    layout_of,
)

pytestmark = pytest.mark.t0

TASK_7 = PagemapId(PagemapKind.TASK, 7)

HEADERS = [
    (
        Header(Command.OPEN2, target=TASK_7.encode()),
        "04000000 00000000 0000000000000000 0107000000000000",
        "04000000 00000000 0000000000000000 0000000000000000 0107000000000000",
    ),
    (
        Header(Command.PARENT, target=PagemapId(PagemapKind.SHMEM, 0x18000).encode()),
        "05000000 00000000 0000000000000000 0200800100000000",
        "05000000 00000000 0000000000000000 0000000000000000 0200800100000000",
    ),
    (
        Header(Command.ADD_F, PageFlag.PRESENT | PageFlag.LAZY, 3, 0x7FFEF6BBF000, TASK_7.encode()),
        "06000600 03000000 00f0bbf6fe7f0000 0107000000000000",
        "06000600 00000000 0300000000000000 00f0bbf6fe7f0000 0107000000000000",
    ),
    (
        Header(Command.ADD_F, PageFlag.PARENT, 1 << 20, 0x1000, TASK_7.encode()),
        "06000100 00001000 0010000000000000 0107000000000000",
        "06000100 00000000 0000100000000000 0010000000000000 0107000000000000",
    ),
    (
        Header(Command.GET, pages=16, address=0x1000, target=4097),
        "07000000 10000000 0010000000000000 0110000000000000",
        "07000000 00000000 1000000000000000 0010000000000000 0110000000000000",
    ),
    (Header(Command.CLOSE), "23100000" + "00" * 20, "23100000" + "00" * 28),
    (Header(Command.FORCE_CLOSE), "24100000" + "00" * 20, "24100000" + "00" * 28),
]


@pytest.mark.parametrize(("header", "narrow", "wide"), HEADERS)
def test_headers_byte_by_byte(header: Header, narrow: str, wide: str) -> None:
    assert header.encode(Layout.NARROW) == bytes.fromhex(narrow)
    assert header.encode(Layout.WIDE) == bytes.fromhex(wide)
    assert Header.decode(bytes.fromhex(narrow), Layout.NARROW) == header
    assert Header.decode(bytes.fromhex(wide), Layout.WIDE) == header


@pytest.mark.parametrize(("header", "narrow", "wide"), [one for one in HEADERS if one[0].command is not Command.ADD_F])
def test_the_first_header_tells_the_layout_unless_it_closes(header: Header, narrow: str, wide: str) -> None:
    closes = header.command in (Command.CLOSE, Command.FORCE_CLOSE)
    assert layout_of(bytes.fromhex(narrow)) is (None if closes else Layout.NARROW)
    assert layout_of(bytes.fromhex(wide)[:24]) is (None if closes else Layout.WIDE)


@given(st.integers(1, 1 << 22), st.integers(1, MAX_ASKED_PAGES), st.integers(1, (1 << 44) - 1), st.binary(min_size=4))
def test_the_layout_of_requests_for_pages(pid: int, pages: int, page: int, padding: bytes) -> None:
    header = Header(Command.GET, pages=pages, address=page * PAGE_SIZE, target=pid)
    assert layout_of(header.encode(Layout.NARROW)) is Layout.NARROW
    wide = bytearray(header.encode(Layout.WIDE))
    wide[4:8] = padding[:4]
    assert layout_of(bytes(wide[:24])) is Layout.WIDE
    assert Header.decode(bytes(wide), Layout.WIDE) == header


@pytest.mark.parametrize(
    ("raw", "kind", "name"),
    [
        (7 << 8 | 1, PagemapKind.TASK, "pagemap-7.img"),
        (0x18000 << 8 | 2, PagemapKind.SHMEM, "pagemap-shmem-98304.img"),
        (7 << 8 | 11, PagemapKind.TASK, "pagemap-7.img"),
        (7 << 8 | 34, PagemapKind.SHMEM, "pagemap-shmem-7.img"),
    ],
)
def test_pagemaps_and_the_names_of_their_images(raw: int, kind: PagemapKind, name: str) -> None:
    pagemap = PagemapId.decode(raw)
    assert pagemap.kind is kind and pagemap.image_name == name
    assert PagemapId.decode(pagemap.encode()) == pagemap


@pytest.mark.parametrize("raw", [0, 1, 2, 7 << 8, 7 << 8 | 3, 7 << 8 | 255, (1 << 40) << 8 | 1, (1 << 64) - 1])
def test_ids_of_no_pagemap(raw: int) -> None:
    with pytest.raises(RemoteProtocolError, match=r"id of no pagemap|no pid"):
        PagemapId.decode(raw)


@pytest.mark.parametrize(
    ("word", "what"),
    [
        (0, "command 0x0"),
        (8, "command 0x8"),
        (0x1025, "command 0x1025"),
        (6 | 12 << 16, "ADD_F with flag 0x8: compressed pages"),
        (6 | 20 << 16, "ADD_F with flag 0x10: no released"),
        (4 | 4 << 16, "OPEN2 with flag 0x4"),
        (1 | 4 << 16, "ADD with flag 0x4"),
    ],
)
@pytest.mark.parametrize("layout", Layout)
def test_what_is_not_known_is_named(word: int, what: str, layout: Layout) -> None:
    raw = word.to_bytes(4, "little") + bytes(layout.size - 4)
    with pytest.raises(RemoteProtocolError, match=what):
        Header.decode(raw, layout)


@pytest.mark.parametrize(
    ("pages", "address"),
    [(0, 0x1000), (101, 0x1000), (1, 0x1001), (1, MAX_ADDRESS), (100, MAX_ADDRESS - PAGE_SIZE), (2**63, 0x1000)],
)
def test_pages_that_no_process_has(pages: int, address: int) -> None:
    with pytest.raises(RemoteProtocolError, match="ADD_F of"):
        Header(Command.ADD_F, PageFlag.PRESENT, pages, address).check_pages(100)


def test_only_pages_that_are_present_follow() -> None:
    assert Extent(TASK_7, 0x1000, 3, PageFlag.PRESENT | PageFlag.LAZY).size == 3 * PAGE_SIZE
    assert Extent(TASK_7, 0x1000, 3, PageFlag.PARENT).size == 0
    assert Extent(TASK_7, 0x1000, 3, PageFlag.LAZY).size == 0
