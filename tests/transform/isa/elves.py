"""ELF files made by hand: one loaded segment, sections with any bytes, and a table of functions."""

import struct
from collections.abc import Mapping

MACHINES = {"x86-64": 62, "aarch64": 183}
_PROGBITS, _SYMTAB, _STRTAB = 1, 2, 3
_FUNCTION = 2


def elf(isa: str, sections: Mapping[str, bytes], functions: Mapping[str, int], *, size: int = 64) -> bytes:
    """The functions are in the first section. `size`: of the segment, in bytes of memory."""
    names = b"\0" + b"".join(name.encode() + b"\0" for name in functions)
    symbols = bytes(24) + b"".join(
        struct.pack("<IBBHQQ", names.index(b"\0" + name.encode()) + 1, _FUNCTION, 0, 1, address, 4)
        for name, address in functions.items()
    )
    every = [(name, _PROGBITS, data, 0, 0) for name, data in sections.items()]
    every += [(".symtab", _SYMTAB, symbols, len(every) + 2, 24), (".strtab", _STRTAB, names, 0, 0)]
    titles = b"\0" + b"".join(name.encode() + b"\0" for name, *_ in every) + b".shstrtab\0"
    every.append((".shstrtab", _STRTAB, titles, 0, 0))
    body, headers, at = b"", bytes(64), 64 + 56
    for name, kind, data, link, entry in every:
        title = titles.index(b"\0" + name.encode() + b"\0") + 1
        headers += struct.pack("<IIQQQQIIQQ", title, kind, 0, 0, at + len(body), len(data), link, 0, 1, entry)
        body += data
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", 2, MACHINES[isa], 1, 0, 64, at + len(body), 0, 64, 56, 1, 64,
        len(every) + 1, len(every),
    )  # fmt: skip
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x800000, 0x800000, size, size, 0x1000) + body + headers
