"""The table of sites of an executable made by hetcc: where a process can be stopped so that it can change ISA.

Written by the link (toolchain/link.py), read by whoever stops a process at a site, walks its frames, or rewrites its
image for the other ISA: the same id names the same site in both executables of a pair. It is the section
`.unified.sites` of the executable, which is not loaded. All is little endian: 8 bytes of magic, u32 number of records,
u32 bytes of a record; then the records, by address.

    u64 address    u64 target    u32 id    u32 frame    u32 kind    u32 zero
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from transform.errors import TransformError

SECTION = ".unified.sites"
_MAGIC = b"UNISITE1"
_HEAD = struct.Struct("<8sII")
_RECORD = struct.Struct("<QQIIII")
HEAD_SIZE = _HEAD.size


class Kind(IntEnum):
    """What is at a site's address."""

    CALL = 1  #: the return address of a call: all of the caller's state is in its frame
    POLL = 2  #: a nop in a loop, registers are live: go on at `target`, which soon comes to a call's site
    SYSCALL = 3  #: the instruction of a system call in the stub; a stop there, and just behind it
    WAIT = 4  #: the same, but just behind it only with a negative result: another is still of this ISA's layout


@dataclass(frozen=True)
class Site:
    """`frame`: bytes from the frame pointer down to the stack pointer of the function at a CALL or POLL, else 0."""

    address: int
    id: int
    kind: Kind
    frame: int = 0
    target: int = 0  #: of a POLL; of a SYSCALL or WAIT the entry of the stub, from which the call can be made again


def pack_sites(sites: Iterable[Site]) -> bytes:
    """The section's bytes."""
    ordered = sorted(sites, key=lambda site: site.address)
    records = [_RECORD.pack(one.address, one.target, one.id, one.frame, one.kind, 0) for one in ordered]
    return _HEAD.pack(_MAGIC, len(records), _RECORD.size) + b"".join(records)


def unpack_sites(data: bytes) -> list[Site]:
    """The sites by address. TransformError for bytes that are no such table."""
    try:
        magic, count, size = _HEAD.unpack_from(data)
        if magic != _MAGIC or size != _RECORD.size or len(data) != _HEAD.size + count * size:
            raise TransformError("a table of sites in a format that is not known")
        return unpack_records(data[_HEAD.size :])
    except (struct.error, ValueError) as error:
        raise TransformError(f"a table of sites that is damaged: {error}") from None


def unpack_records(data: bytes) -> list[Site]:
    """The records behind the head, as they are. struct.error or ValueError for what are no records."""
    records = _RECORD.iter_unpack(data)
    return [Site(address, number, Kind(kind), frame, target) for address, target, number, frame, kind, _ in records]


def read_sites(executable: Path) -> list[Site]:
    """The sites of an executable by address. TransformError for a file that hetcc did not make."""
    from elftools.common.exceptions import ELFError  # here: every start of imgproxy would pay for it, by a tenth
    from elftools.elf.elffile import ELFFile

    try:
        with executable.open("rb") as file:
            section = ELFFile(file).get_section_by_name(SECTION)
            data = None if section is None else section.data()
    except ELFError as error:
        raise TransformError(f"{executable}: no executable: {error}") from None
    if data is None:
        raise TransformError(f"{executable}: no table of sites; only what hetcc has made can change ISA")
    return unpack_sites(data)
