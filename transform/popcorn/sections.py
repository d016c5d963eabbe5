"""The sections of an executable that say where its live values are, `.stack_transform.*`: Popcorn's tools write them.

Little endian, packed. A call site is named by its return address in one executable, and by its id in both of a pair.
Sites, unwind entries and values refer to each other by index; a site is decoded when a stack has it, since executables
have thousands and a stack few. All tables are checked for size, order and bounds before any is used.

| section | record |
|---|---|
| `unwind_arange` | u64 function, u32 number of unwind entries, u32 the first's index |
| `unwind` | u16 DWARF register, i16 where it is saved, from the frame pointer |
| `id`, `addr` | u64 id, u64 address, u32 frame size, three times u16 number and u64 first index (unwind, live, arch) |
| `live` | u8 kind and flags, u8 size, u16 register, i32 offset or constant, u32 bytes of an alloca |
| `arch_const` | u8 kind and flag, u8 size, u16 register, i32 offset; u8 operation, u8 size, u16 register, i64 operand |
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from transform.errors import TransformError
from transform.popcorn.stackmaps import SECTION as STACKMAPS
from transform.popcorn.stackmaps import constants_by_address

PREFIX = ".stack_transform."
_SITE = struct.Struct("<QQIHQHQHQ2x")
_LIVE = struct.Struct("<BBHiI")
_ARCH = struct.Struct("<BBHiBBHq")
RECORDS = {
    "unwind_arange": struct.Struct("<QII"),
    "unwind": struct.Struct("<Hh"),
    "id": _SITE,
    "addr": _SITE,
    "live": _LIVE,
    "arch_const": _ARCH,
}
"""The form of a record of each section, whose name follows `PREFIX`."""
MAY_BE_EMPTY = frozenset({"live", "arch_const"})
TEMPORARY, DUPLICATE, ALLOCA, POINTER, GENERATED = 1, 2, 4, 8, 8
KIND_AT = 4
"""Flags are below this bit, the kind of a place or the operation above."""


class Kind(IntEnum):
    """Where a value is. DIRECT: it is the memory at register and offset (a variable); INDIRECT: it is kept there."""

    REGISTER = 1
    DIRECT = 2
    INDIRECT = 3
    CONSTANT = 4
    CONSTANT_INDEX = 5


class Operation(IntEnum):
    """How a value of one ISA is made."""

    SET = 0
    ADD = 1
    SUBTRACT = 2
    MULTIPLY = 3
    DIVIDE = 4
    SHIFT_LEFT = 5
    SHIFT_RIGHT = 6
    SHIFT_RIGHT_SIGNED = 7
    MASK = 8
    LOAD_32 = 9
    LOAD_64 = 10


_KINDS = {int(kind): kind for kind in Kind}
_OPERATIONS = {int(operation): operation for operation in Operation}


@dataclass(frozen=True, slots=True)
class Function:
    """A function's saved registers: `count` unwind entries from `first` on."""

    address: int
    count: int
    first: int


@dataclass(frozen=True, slots=True)
class Saved:
    """A register of the caller, saved `offset` bytes from the frame pointer."""

    register: int  #: DWARF
    offset: int


class LiveValue(NamedTuple):
    """A place of a live value; one that is a `duplicate` is a further place of the value before it."""

    kind: Kind
    size: int  #: bytes; of an alloca those of the variable
    register: int  #: DWARF
    offset: int  #: or the constant, or its index
    alloca: bool = False  #: the value is a variable on the stack
    pointer: bool = False
    duplicate: bool = False
    temporary: bool = False  #: the compiler made it for the record alone: it is read, and not written


class ArchValue(NamedTuple):
    """A value that only this ISA has, and one step of how it is made."""

    kind: Kind
    size: int
    register: int
    offset: int
    pointer: bool
    operation: Operation
    operand: Kind
    operand_size: int
    operand_register: int
    operand_value: int  #: constant, or offset
    generated: bool  #: the operation is on what is there, and not a copy


@dataclass(frozen=True, slots=True)
class CallSite:
    """What is live when a call returns to `address`, and how to find the caller's frame."""

    id: int
    address: int
    frame_size: int  #: from the stack pointer to the caller's, in bytes
    saved: tuple[Saved, ...]
    live: tuple[LiveValue, ...]
    arch: tuple[ArchValue, ...]


class CallSites:
    """All call sites of one executable."""

    def __init__(self, name: str, tables: Mapping[str, bytes], stackmaps: bytes = b"") -> None:
        """`tables`: the sections' bytes by their names after `PREFIX`. TransformError for tables that do not hold."""
        self.name = name
        self._tables, self._stackmaps = tables, stackmaps
        for table, record in RECORDS.items():
            if len(tables[table]) % record.size or not (tables[table] or table in MAY_BE_EMPTY):
                raise self._damaged(table, f"{len(tables[table])} bytes are no records of {record.size}")
        self._records = list(_SITE.iter_unpack(tables["addr"]))
        self._by_address = self._index("addr", [record[1] for record in self._records])
        by_id = list(_SITE.iter_unpack(tables["id"]))
        ids = self._index("id", [record[0] for record in by_id])
        if len(ids) != len(self._by_address) or set(by_id) != set(self._records):
            raise self._damaged("id", f"has other call sites than {PREFIX}addr")
        self._by_id = {record[0]: index for index, record in enumerate(self._records)}
        self._check_bounds()
        self._functions = [
            Function(*record) for record in RECORDS["unwind_arange"].iter_unpack(tables["unwind_arange"])
        ]
        self._starts = [function.address for function in self._functions]
        self._index("unwind_arange", self._starts)
        self._decoded: dict[int, CallSite] = {}

    def at(self, address: int) -> CallSite | None:
        """The call site whose call returns to `address`. TransformError for one whose records do not hold."""
        index = self._by_address.get(address)
        return None if index is None else self._site(index)

    def with_id(self, number: int) -> CallSite | None:
        """The call site of that id. TransformError for one whose records do not hold."""
        index = self._by_id.get(number)
        return None if index is None else self._site(index)

    def ids(self) -> Set[int]:
        """Of all call sites."""
        return self._by_id.keys()

    def constant(self, site: CallSite, index: int) -> int:
        """A constant of the pool of the site's module, 8 bytes. TransformError if there is none."""
        pool = self._constants.get(site.address, ())
        if not 0 <= index < len(pool):
            raise TransformError(f"{self.name}: the call site {site.address:#x} has no constant {index} in {STACKMAPS}")
        return pool[index]

    @cached_property
    def _constants(self) -> dict[int, tuple[int, ...]]:
        return constants_by_address(self.name, self._stackmaps)

    def _index(self, table: str, keys: list[int]) -> dict[int, int]:
        if any(one >= other for one, other in pairwise(keys)):
            raise self._damaged(table, "is not in order, or has one twice")
        return {key: index for index, key in enumerate(keys)}

    def _check_bounds(self) -> None:
        unwind, live, arch = (
            len(self._tables[name]) // RECORDS[name].size for name in ("unwind", "live", "arch_const")
        )
        for _, address, _, saved, first_saved, lives, first_live, archs, first_arch in self._records:
            if first_saved + saved > unwind or first_live + lives > live or first_arch + archs > arch:
                raise self._damaged("addr", f"the call site {address:#x} has records beyond the ends of their sections")

    def _site(self, index: int) -> CallSite:
        if index not in self._decoded:
            number, address, size, saved, first_saved, lives, first_live, archs, first_arch = self._records[index]
            self._check_function(address, saved, first_saved)
            self._decoded[index] = CallSite(
                number,
                address,
                size,
                tuple(Saved(*record) for record in self._slice("unwind", first_saved, saved)),
                tuple(_live(self, record) for record in self._slice("live", first_live, lives)),
                tuple(_arch(self, record) for record in self._slice("arch_const", first_arch, archs)),
            )
        return self._decoded[index]

    def _check_function(self, address: int, saved: int, first: int) -> None:
        index = bisect_right(self._starts, address) - 1
        if index < 0 or (saved, first) != (self._functions[index].count, self._functions[index].first):
            raise self._damaged("unwind_arange", f"does not have the registers that the call site {address:#x} saves")

    def _slice(self, table: str, first: int, count: int) -> Iterable[tuple[Any, ...]]:
        record = RECORDS[table]
        return record.iter_unpack(self._tables[table][first * record.size : (first + count) * record.size])

    def _damaged(self, table: str, reason: str) -> TransformError:
        return TransformError(f"{self.name}: {PREFIX}{table}: {reason}")


def _live(sites: CallSites, record: tuple[int, int, int, int, int]) -> LiveValue:
    flags, size, register, offset, alloca_size = record
    alloca, temporary = bool(flags & ALLOCA), bool(flags & TEMPORARY)
    variable = alloca and not temporary
    return LiveValue(
        _kind(sites, flags >> KIND_AT),
        alloca_size if variable else size,
        register,
        offset,
        alloca=variable,
        pointer=bool(flags & POINTER),
        duplicate=bool(flags & DUPLICATE),
        temporary=temporary,
    )


def _arch(sites: CallSites, record: tuple[int, int, int, int, int, int, int, int]) -> ArchValue:
    flags, size, register, offset, how, operand_size, operand_register, operand = record
    operation = _OPERATIONS.get(how >> KIND_AT)
    if operation is None:
        raise TransformError(f"{sites.name}: {PREFIX}arch_const: the operation {how >> KIND_AT} is not known")
    return ArchValue(
        _kind(sites, flags >> KIND_AT),
        size,
        register,
        offset,
        bool(flags & 1),
        operation,
        _kind(sites, how & 7),
        operand_size,
        operand_register,
        operand,
        bool(how & GENERATED),
    )


def _kind(sites: CallSites, number: int) -> Kind:
    kind = _KINDS.get(number)
    if kind is None:
        raise TransformError(f"{sites.name}: {PREFIX}live or {PREFIX}arch_const: a place of kind {number}")
    return kind


def read_call_sites(executable: Path) -> CallSites | None:
    """Those of an executable; None if Popcorn's tools did not make it. TransformError if it is none, or damaged."""
    from elftools.common.exceptions import ELFError  # here: every start of imgproxy would pay for it, by a tenth
    from elftools.elf.elffile import ELFFile

    try:
        with executable.open("rb") as file:
            elf = ELFFile(file)
            found = {table: elf.get_section_by_name(PREFIX + table) for table in RECORDS}
            maps = elf.get_section_by_name(STACKMAPS)
            tables = {table: section.data() for table, section in found.items() if section is not None}
            sizes = {table: section["sh_entsize"] for table, section in found.items() if section is not None}
            stackmaps = b"" if maps is None else maps.data()
    except ELFError as error:
        raise TransformError(f"{executable}: no executable: {error}") from None
    if not tables:
        return None
    if missing := [PREFIX + table for table in RECORDS if table not in tables and table not in MAY_BE_EMPTY]:
        raise TransformError(f"{executable}: has no {', '.join(missing)}, but others of Popcorn's sections")
    for table, size in sizes.items():
        if size not in (0, RECORDS[table].size):
            raise TransformError(f"{executable}: {PREFIX}{table}: records of {size} bytes are not known")
    return CallSites(str(executable), dict.fromkeys(MAY_BE_EMPTY, b"") | tables, stackmaps)
