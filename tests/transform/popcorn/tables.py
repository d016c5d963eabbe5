"""Call sites written out one by one, for what goes wrong with them."""

import struct
from collections.abc import Iterable, Sequence

from transform.popcorn.machine import MACHINES
from transform.popcorn.places import Side
from transform.popcorn.sections import ArchValue, CallSite, CallSites, Kind, LiveValue, Operation, Saved

FP = {"x86-64": 6, "aarch64": 29}
SP = {"x86-64": 7, "aarch64": 31}
FUNCTION = 0x1000


def site(
    number: int = 1, size: int = 64, live: Sequence[LiveValue] = (), arch: Sequence[ArchValue] = (),
    saved: Sequence[Saved] = (), address: int = FUNCTION + 8,
) -> CallSite:  # fmt: skip
    return CallSite(number, address, size, tuple(saved), tuple(live), tuple(arch))


def constant_step(operation: Operation, value: int, generated: bool = True, register: int = 3) -> ArchValue:
    return ArchValue(Kind.REGISTER, 8, register, 0, False, operation, Kind.CONSTANT, 8, 0, value, generated)


def encode(sites: Iterable[CallSite]) -> dict[str, bytes]:
    """The tables; each site is in a function of its own, 8 bytes before it."""
    unwind, ranges, live, arch = b"", b"", b"", b""
    records: list[bytes] = []
    for one in sites:
        counts = (len(one.saved), len(unwind) // 4, len(one.live), len(live) // 12, len(one.arch), len(arch) // 20)
        records.append(struct.pack("<QQIHQHQHQ2x", one.id, one.address, one.frame_size, *counts))
        ranges += struct.pack("<QII", one.address - 8, len(one.saved), len(unwind) // 4)
        unwind += b"".join(struct.pack("<Hh", saved.register, saved.offset) for saved in one.saved)
        live += b"".join(map(_live, one.live))
        arch += b"".join(map(_arch, one.arch))
    by_id = sorted(records, key=lambda record: record[:8][::-1])
    tables = {"unwind_arange": ranges, "unwind": unwind or bytes(4), "live": live, "arch_const": arch}
    return tables | {"id": b"".join(by_id), "addr": b"".join(records)}


def side(isa: str, sites: Iterable[CallSite]) -> Side:
    return Side(CallSites(f"prog_{isa}", encode(sites)), MACHINES[isa])


def _live(value: LiveValue) -> bytes:
    flags = value.temporary | value.duplicate << 1 | value.alloca << 2 | value.pointer << 3
    sizes = (8, value.size) if value.alloca else (value.size, 0)
    return struct.pack("<BBHiI", value.kind << 4 | flags, sizes[0], value.register, value.offset, sizes[1])


def _arch(value: ArchValue) -> bytes:
    how = value.operation << 4 | value.generated << 3 | value.operand
    head = (value.kind << 4 | value.pointer, value.size, value.register, value.offset)
    return struct.pack("<BBHiBBHq", *head, how, value.operand_size, value.operand_register, value.operand_value)
