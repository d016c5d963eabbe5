"""Made-up programs as executables, with the sections that Popcorn's tools write; their form is written down anew."""

import struct
from collections.abc import Iterator

from tests.transform.popcorn.elf import Segment, elf
from tests.transform.popcorn.programs import (
    ALLOCA,
    CONSTANTS,
    CONSTANTS_AT,
    DIRECT,
    DUPLICATE,
    POINTER,
    POOL,
    TEMPORARY,
    TEXT,
    Function,
    Isa,
    Program,
    Site,
    Value,
)  # fmt: skip


def executable(program: Program, isa: Isa) -> bytes:
    """The program for one ISA: code that says which, constants, and the sections."""
    segments = [Segment(TEXT, isa.name.encode()), Segment(CONSTANTS_AT, CONSTANTS, 4)]
    return elf(isa.name, tables(program, isa), segments)


def tables(program: Program, isa: Isa) -> dict[str, tuple[bytes, int]]:
    """The sections, and the sizes of their records."""
    unwind, ranges, live, arch, maps = bytearray(), bytearray(), bytearray(), bytearray(), bytearray()
    sites: list[bytes] = []
    for index, function in enumerate(program.functions):
        first = len(unwind) // 4
        entries = [*function.saved[isa.name], (isa.frame, 0), (isa.link, 8)]
        unwind += b"".join(struct.pack("<Hh", *entry) for entry in entries)
        ranges += struct.pack("<QII", function.address[isa.name], len(entries), first)
        for site in function.sites:
            values = [record for value in site.values for record in _records(value, isa, function)]
            made = [record for one in site.made[isa.name] for record in one.records]
            head = (site.number, site.addresses[isa.name], function.size[isa.name], len(entries), first)
            counts = (len(values), len(live) // 12, len(made), len(arch) // 20, 0xDEAD)
            sites.append(struct.pack("<QQIHQHQHQH", *head, *counts))
            live += b"".join(values)
            arch += b"".join(made)
            maps += _mapped(site, index, isa, values, made)
    by_id = sorted(sites, key=lambda record: record[:8][::-1])
    by_address = sorted(sites, key=lambda record: record[8:16][::-1])
    return {
        ".stack_transform.unwind_arange": (bytes(ranges), 16),
        ".stack_transform.unwind": (bytes(unwind), 4),
        ".stack_transform.id": (b"".join(by_id), 52),
        ".stack_transform.addr": (b"".join(by_address), 52),
        ".stack_transform.live": (bytes(live), 12),
        ".stack_transform.arch_const": (bytes(arch), 20),
        ".llvm_pcn_stackmaps": (_modules(program, isa, bytes(maps), len(sites)), 0),
    }


def _modules(program: Program, isa: Isa, maps: bytes, count: int) -> bytes:
    """One without call sites, and the program's."""
    empty = struct.pack("<BBHIII", 3, 0, 0, 0, 1, 0) + struct.pack("<Q", 1)
    head = struct.pack("<BBHIII", 3, 0, 0, len(program.functions), len(POOL), count)
    described = (
        struct.pack("<QQQII", function.address[isa.name], 0, len(function.sites), 0, 0)
        for function in program.functions
    )
    return empty + head + b"".join(described) + struct.pack(f"<{len(POOL)}Q", *POOL) + maps


def _mapped(site: Site, index: int, isa: Isa, values: list[bytes], made: list[bytes]) -> bytes:
    offset = site.addresses[isa.name] - site.function.address[isa.name]
    record = struct.pack("<QIIHH", site.number & 0xFF, index, offset, 0, len(values)) + b"".join(values)
    record += struct.pack("<HHHBBHH", 0, 1, 3, 0, 8, 0, len(made)) + b"".join(made)
    return record + bytes(-len(record) % 8)


def _records(value: Value, isa: Isa, function: Function) -> Iterator[bytes]:
    for index, spot in enumerate(value.spots[isa.name]):
        whole = value.temporary_of if spot.kind == DIRECT else None
        flags = (POINTER if value.pointer else 0) | (DUPLICATE if index else 0)
        flags |= (ALLOCA if value.variable else 0) | (ALLOCA | TEMPORARY if whole else 0)
        size = 8 if value.variable else value.size
        inside = value.size if value.variable else whole.size if whole else 0
        register, offset = spot.register, spot.offset
        if register == isa.frame and offset % 3 == 0:  # the same place, from the stack pointer
            register, offset = isa.stack, offset - 16 + function.size[isa.name]
        yield struct.pack("<BBHiI", spot.kind << 4 | flags, size, register, offset, inside)
