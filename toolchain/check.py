"""Whether two executables are a pair: the same segments, every function and variable at the same address, equal data,
and the same sites.

`hetcc --check` for any two; every link ends with it.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.sections import SymbolTableSection

from toolchain.layout import EQUAL
from toolchain.tools import AARCH64, X86_64, Isa, ToolError
from transform.errors import TransformError
from transform.sites import read_sites

#: Sections whose bytes are the same on both.
_EQUAL_SECTIONS = (".rodata.equal", ".data.equal")
_MACHINES = {X86_64: "EM_X86_64", AARCH64: "EM_AARCH64"}
#: Most differences that are told.
_TOLD = 10


def check_pair(pair: dict[Isa, Path]) -> None:
    """ToolError, which tells all that differs, if the two are no pair."""
    try:
        found = list(_differences(pair))
    except TransformError as error:
        raise ToolError(str(error)) from None
    if found:
        more = [f"and {len(found) - _TOLD} more"] if len(found) > _TOLD else []
        told = "\n  ".join([*found[:_TOLD], *more])
        raise ToolError(f"{pair[X86_64]} and {pair[AARCH64]} are no pair:\n  {told}")


def _differences(pair: dict[Isa, Path]) -> Iterator[str]:
    with pair[X86_64].open("rb") as x86, pair[AARCH64].open("rb") as arm:
        elves = {X86_64: ELFFile(x86), AARCH64: ELFFile(arm)}
        for isa, elf in elves.items():
            if elf["e_machine"] != _MACHINES[isa]:
                yield f"{pair[isa]}: is for {elf['e_machine']}"
                return
        yield from _segments(*elves.values())
        yield from _symbols(*elves.values())
        yield from _data(*elves.values())
        yield from _sites(pair[X86_64], pair[AARCH64])


def _segments(one: ELFFile, other: ELFFile) -> Iterator[str]:
    for first, second in zip(one.iter_segments(), other.iter_segments(), strict=False):
        for field in ("p_type", "p_vaddr", "p_memsz", "p_filesz", "p_flags"):
            if first[field] != second[field]:
                yield f"segment at {first['p_vaddr']:#x}: {field} {first[field]} and {second[field]}"
    if one.num_segments() != other.num_segments():
        yield f"{one.num_segments()} and {other.num_segments()} segments"


def _addresses(elf: ELFFile) -> dict[str, int]:
    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        raise ToolError("an executable without symbols: it cannot be checked")
    wanted = ("STT_FUNC", "STT_OBJECT")
    return {
        symbol.name: symbol["st_value"]
        for symbol in table.iter_symbols()
        if symbol["st_info"]["type"] in wanted and symbol["st_value"] >= EQUAL
    }


def _symbols(one: ELFFile, other: ELFFile) -> Iterator[str]:
    first, second = _addresses(one), _addresses(other)
    for name in sorted(first.keys() | second.keys()):
        places = [f"{of[name]:#x}" if name in of else "nowhere" for of in (first, second)]
        if places[0] != places[1]:
            yield f"{name}: at {places[0]} and {places[1]}"


def _data(one: ELFFile, other: ELFFile) -> Iterator[str]:
    for name in _EQUAL_SECTIONS:
        first, second = (elf.get_section_by_name(name) for elf in (one, other))
        if (first is None) is not (second is None):
            yield f"{name}: only in one of them"
        elif first is not None and second is not None and first.data() != second.data():
            at = next(
                index for index, pair in enumerate(zip(first.data(), second.data(), strict=True)) if pair[0] != pair[1]
            )
            yield f"{name}: differs at {first['sh_addr'] + at:#x}"


def _sites(one: Path, other: Path) -> Iterator[str]:
    first, second = (
        {site.id: replace(site, address=0, target=0) for site in read_sites(path)} for path in (one, other)
    )
    if first.keys() != second.keys():
        yield "they do not have the same sites"
    for number in first.keys() & second.keys():
        if first[number] != second[number]:
            yield f"site {number}: {first[number]} and {second[number]}"
