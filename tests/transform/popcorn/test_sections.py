"""Popcorn's sections: what was written is read, and what is damaged is refused."""

import struct
from pathlib import Path

import pytest

from tests.transform.popcorn.elf import elf
from tests.transform.popcorn.encoding import executable, tables
from tests.transform.popcorn.programs import ARM, POOL, X86, Isa, Program
from tests.transform.popcorn.tables import constant_step, encode, site
from transform.errors import TransformError
from transform.popcorn.sections import CallSites, Kind, LiveValue, Operation, Saved, read_call_sites

pytestmark = pytest.mark.t0
LIVE = [
    LiveValue(Kind.DIRECT, 400, 6, -416, alloca=True, pointer=True),
    LiveValue(Kind.REGISTER, 4, 12, 0),
    LiveValue(Kind.INDIRECT, 4, 7, 8, duplicate=True),
    LiveValue(Kind.CONSTANT, 8, 0, -5),
    LiveValue(Kind.CONSTANT_INDEX, 8, 0, 2, temporary=True),
]
SITES = [
    site(7, 96, LIVE, [constant_step(Operation.MASK, -4096)], [Saved(12, -8), Saved(6, 0), Saved(16, 8)]),
    site(2**64 - 1, 32, address=0x2008),
    site(3, 16, address=0x3008, saved=[Saved(3, -32768)]),
]


def test_what_was_written_is_read() -> None:
    sites = CallSites("prog", encode(SITES))
    assert [sites.at(one.address) for one in SITES] == SITES
    assert [sites.with_id(one.id) for one in SITES] == SITES
    assert sites.at(0x1009) is None and sites.with_id(8) is None


@pytest.mark.parametrize("isa", [X86, ARM])
def test_an_executable_is_read(tmp_path: Path, isa: Isa) -> None:
    program = Program(1)
    (tmp_path / "prog").write_bytes(executable(program, isa))
    sites = read_call_sites(tmp_path / "prog")
    assert sites is not None
    for one in program.sites:
        read = sites.with_id(one.number)
        assert read is not None and read == sites.at(one.addresses[isa.name])
        assert read.frame_size == one.function.size[isa.name]
        assert len(read.live) == sum(len(value.spots[isa.name]) for value in one.values)
        assert [sites.constant(read, index) for index in range(len(POOL))] == list(POOL)


def test_another_executable_has_none(tmp_path: Path) -> None:
    (tmp_path / "prog").write_bytes(elf("x86-64", {".text": (b"", 0)}))
    assert read_call_sites(tmp_path / "prog") is None


@pytest.mark.parametrize(
    ("table", "data", "reason"),
    [
        ("addr", b"", "addr: 0 bytes are no records of 52"),
        ("live", bytes(13), "live: 13 bytes are no records of 12"),
        ("unwind_arange", bytes(17), "unwind_arange: 17 bytes are no records of 16"),
        ("id", encode(SITES)["addr"], "id: is not in order, or has one twice"),
        ("id", encode(SITES[1:])["id"], "id: has other call sites than"),
        ("addr", encode(SITES)["addr"][52:] + encode(SITES)["addr"][:52], "addr: is not in order"),
        ("unwind_arange", bytes(32), "unwind_arange: is not in order"),
        ("live", bytes(12), "the call site 0x1008 has records beyond the ends"),
        ("unwind", bytes(8), "has records beyond the ends"),
        ("arch_const", b"", "has records beyond the ends"),
    ],
)
def test_damaged_tables_are_refused(table: str, data: bytes, reason: str) -> None:
    with pytest.raises(TransformError, match=f"^prog: .*{reason}"):
        CallSites("prog", encode(SITES) | {table: data})


@pytest.mark.parametrize(
    ("table", "at", "value", "reason"),
    [
        ("live", 0, 0x60, "a place of kind 6"),
        ("live", 12, 0x00, "a place of kind 0"),
        ("arch_const", 0, 0xF0, "a place of kind 15"),
        ("arch_const", 8, 0xB4, "the operation 11 is not known"),
        ("arch_const", 8, 0x07, "a place of kind 7"),
        ("unwind_arange", 8, 2, "does not have the registers that the call site 0x1008 saves"),
    ],
)
def test_records_that_are_not_known_are_refused(table: str, at: int, value: int, reason: str) -> None:
    changed = bytearray(encode(SITES)[table])
    changed[at] = value
    with pytest.raises(TransformError, match=reason):
        CallSites("prog", encode(SITES) | {table: bytes(changed)}).at(SITES[0].address)


def test_executables_that_are_damaged_are_refused(tmp_path: Path) -> None:
    path, sections = tmp_path / "prog", tables(Program(1), X86)
    path.write_bytes(elf("x86-64", {name: one for name, one in sections.items() if not name.endswith(".id")}))
    with pytest.raises(TransformError, match=r"prog: has no \.stack_transform\.id, but others"):
        read_call_sites(path)
    path.write_bytes(elf("x86-64", sections | {".stack_transform.live": (b"", 16)}))
    with pytest.raises(TransformError, match=r"\.stack_transform\.live: records of 16 bytes are not known"):
        read_call_sites(path)
    path.write_bytes(b"#!/bin/sh\n")
    with pytest.raises(TransformError, match="prog: no executable"):
        read_call_sites(path)


def test_an_executable_with_any_byte_changed_is_read_or_refused() -> None:
    """In the tables themselves: what is refused is refused by name."""
    whole = {name.removeprefix(".stack_transform."): data for name, (data, _) in tables(Program(2), X86).items()}
    stackmaps = whole.pop(".llvm_pcn_stackmaps")
    addresses = [record[1] for record in struct.iter_unpack("<QQIHQHQHQ2x", whole["addr"])]
    refused = 0
    for step in range(0, 2000, 7):
        name = sorted(whole)[step % len(whole)]
        data = bytearray(whole[name])
        data[step * 31 % len(data)] ^= 1 << step % 8
        try:
            sites = CallSites("prog", whole | {name: bytes(data)}, stackmaps)
            assert [sites.at(address) is None for address in addresses].count(True) <= 1
        except TransformError as error:
            assert str(error).startswith("prog: .stack_transform.")
            refused += 1
    assert refused > 50
