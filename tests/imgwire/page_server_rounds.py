"""What a CRIU says to a page server: recorded rounds, and any that it could say; for all tests of that protocol."""

from hypothesis import strategies as st

from imgwire.page_server_messages import PAGE_SIZE, Command, Extent, Header, Layout, PageFlag, PagemapId, PagemapKind

#: By pagemap, its extents and their payload.
Meaning = dict[PagemapId, list[tuple[Extent, bytes]]]

PRESENT, LAZY, PARENT = PageFlag.PRESENT, PageFlag.LAZY, PageFlag.PARENT

#: `criu dump --page-server` of a process that has forked, with a shared and a private mapping: the headers as they
#: came, each with the begin of its payload, the rest of which is zeros here.
RECORDED = {
    "4.1.1": """
        0400000000000000000000000000000002c57f0100000000
        0600040001000000000000000000000002c57f0100000000 7300000000000000
        0600040001000000002000000000000002c57f0100000000 5300000000000000
        04000000000000000000000000000000018b770000000000
        06000400010000000010400000000000018b770000000000 555341ba21000000
        06000600020000000000001000000000018b770000000000 7000000000000000
        06000400020000000010ec54b27f0000018b770000000000 7f454c4602010100
        060006000300000000f0bbf6fe7f0000018b770000000000 0000000000000000
        04000000000000000000000000000000018c770000000000
        06000400010000000010400000000000018c770000000000 555341ba21000000
        06000600020000000000001000000000018c770000000000 7000000000000000
        06000400020000000010ec54b27f0000018c770000000000 7f454c4602010100
        060006000300000000f0bbf6fe7f0000018c770000000000 0000000000000000
        231000000000000000000000000000000000000000000000
    """,
    "4.2.1": """
        04000000000000000000000000000000000000000000000002bc810100000000
        06000400fe7f00000100000000000000000000000000000002bc810100000000 7300000000000000
        06000400000000000100000000000000002000000000000002bc810100000000 5300000000000000
        04000000000000000000000000000000000000000000000001be780000000000
        06000400000000000100000000000000001040000000000001be780000000000 555341ba21000000
        06000600000000000200000000000000000000100000000001be780000000000 7000000000000000
        0600040000000000020000000000000000f0e034907f000001be780000000000 7f454c4602010100
        0600060000000000010000000000000000d04d60fd7f000001be780000000000 0000000000000000
        04000000000000000000000000000000000000000000000001bf780000000000
        06000400000000000100000000000000001040000000000001bf780000000000 555341ba21000000
        06000600000000000200000000000000000000100000000001bf780000000000 7000000000000000
        0600040000000000020000000000000000f0e034907f000001bf780000000000 7f454c4602010100
        0600060000000000010000000000000000d04d60fd7f000001bf780000000000 0000000000000000
        2310000000000000000000000000000000000000000000000000000000000000
    """,
}
#: The pagemaps, and each extent's address, pages, flags and payload without the zeros at its end.
EXPECTED = {
    "4.1.1": [
        ("pagemap-shmem-98245.img", [(0, 1, 4, b"s"), (0x2000, 1, 4, b"S")]),
        *(
            (
                f"pagemap-{pid}.img",
                [
                    (0x401000, 1, 4, b"USA\xba!"),
                    (0x10000000, 2, 6, b"p"),
                    (0x7FB254EC1000, 2, 4, b"\x7fELF\2\1\1"),
                    (0x7FFEF6BBF000, 3, 6, b""),
                ],
            )
            for pid in (30603, 30604)
        ),
    ],
    "4.2.1": [
        ("pagemap-shmem-98748.img", [(0, 1, 4, b"s"), (0x2000, 1, 4, b"S")]),
        *(
            (
                f"pagemap-{pid}.img",
                [
                    (0x401000, 1, 4, b"USA\xba!"),
                    (0x10000000, 2, 6, b"p"),
                    (0x7F9034E0F000, 2, 4, b"\x7fELF\2\1\1"),
                    (0x7FFD604DD000, 1, 6, b""),
                ],
            )
            for pid in (30910, 30911)
        ),
    ],
}
#: `criu lazy-pages --page-server`, the first two requests: padding has what was there before.
RECORDED_REQUESTS = {
    "4.1.1": "070000000100000000701fe5367f0000f77f000000000000070000001000000000e0aae6bd550000f77f000000000000",
    "4.2.1": (
        "07000000555500000100000000000000004027dfa47f00009a01000000000000"
        "070000005555000010000000000000000040a038b15500009a01000000000000"
    ),
}


def header(
    layout: Layout,
    command: Command,
    pagemap: PagemapId,
    flags: PageFlag = PRESENT & LAZY,
    pages: int = 0,
    address: int = 0,
) -> bytes:
    """A header about a pagemap; padding is not zero."""
    raw = bytearray(Header(command, flags, pages, address, pagemap.encode()).encode(layout))
    if layout is Layout.WIDE:
        raw[4:8] = b"\xfe\x7f\0\xff"
    return bytes(raw)


def turns(recorded: str) -> list[bytes]:
    """What the client of a recording says at once, between two answers."""
    said = [b""]
    for line in recorded.split("\n"):
        header, _, begin = line.strip().partition(" ")
        said[-1] += bytes.fromhex(header)
        if begin:
            pages = int.from_bytes(said[-1][-20:-16], "little") if len(header) == 48 else int(header[16:18], 16)
            said[-1] += bytes.fromhex(begin).ljust(pages * PAGE_SIZE, b"\0")
        elif header:
            said.append(b"")
    return said[:-1]


EXTENTS = st.tuples(
    st.integers(0, 1 << 30), st.integers(1, 3), st.sampled_from([PRESENT, PRESENT | LAZY, PARENT, LAZY])
)


@st.composite
def rounds(draw: st.DrawFn) -> tuple[list[bytes], Meaning]:
    """Any round: what the client says between two answers, and what it means."""
    layout = draw(st.sampled_from(Layout))
    said = [b""]
    meant: Meaning = {}
    kinds = st.builds(PagemapId, st.sampled_from(PagemapKind), st.integers(1, 1 << 22))
    for pagemap in draw(st.lists(kinds, max_size=3, unique=True)):
        said.append((said.pop() if meant else b"") + header(layout, Command.OPEN2, pagemap))
        meant[pagemap], turn, end = [], b"", 0
        for gap, pages, flags in draw(st.lists(EXTENTS, max_size=4)):
            extent = Extent(pagemap, end + gap * PAGE_SIZE, pages, flags)
            data = bytes([pages]) * extent.size
            turn += header(layout, Command.ADD_F, pagemap, flags, pages, extent.address) + data
            meant[pagemap].append((extent, data))
            end = extent.address + pages * PAGE_SIZE
        said.append(turn)
    said[-1] += Header(Command.CLOSE).encode(layout)
    return said, meant
