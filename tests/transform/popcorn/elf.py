"""Small executables: a head, segments and named sections, and nothing that runs."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MACHINES = {"x86-64": 62, "aarch64": 183}
_PAGE = 4096


@dataclass(frozen=True)
class Segment:
    """Bytes that are mapped to an address, from a page of the file on."""

    address: int
    data: bytes
    flags: int = 5


def elf(isa: str, sections: Mapping[str, tuple[bytes, int]], segments: Sequence[Segment] = ()) -> bytes:
    """`sections`: their bytes, and the size of an entry."""
    body = bytearray()
    heads = []
    offset = _PAGE
    for segment in segments:
        data = segment.data + bytes(-len(segment.data) % _PAGE)
        heads.append(
            struct.pack("<IIQQQQQQ", 1, segment.flags, offset, segment.address, 0, len(data), len(data), _PAGE)
        )
        body += data
        offset += len(data)
    names = bytearray(b"\0")
    records = [bytes(64)]
    for name, (data, entry) in [*sections.items(), (".shstrtab", (b"", 0))]:
        at = len(names)
        names += name.encode() + b"\0"
        content = bytes(names) if name == ".shstrtab" else data
        kind = 3 if name == ".shstrtab" else 1
        records.append(struct.pack("<IIQQQQIIQQ", at, kind, 0, 0, offset, len(content), 0, 0, 1, entry))
        body += content
        offset += len(content)
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    counts = (64, 56, len(heads), 64, len(records), len(records) - 1)
    head = ident + struct.pack("<HHIQQQIHHHHHH", 2, MACHINES[isa], 1, 0, 64, offset, 0, *counts)
    return (head + b"".join(heads)).ljust(_PAGE, b"\0") + bytes(body) + b"".join(records)
