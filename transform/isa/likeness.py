"""Whether two executables are a pair: the same build, the same segments, every function and variable at the same
address, equal data, and the same sites.

Asked by hetcc at the end of every link, and before a process changes ISA: what is wrong here is found nowhere later.
The link puts one digest into both: programs that differ in a constant have the same layout.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from transform.errors import TransformError
from transform.sites import SECTION, Site, unpack_sites

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

EQUAL = ".equal"
"""How the names of sections end whose contents have the same addresses in both."""
BUILD = ".unified.build"
"""The section, not loaded, of what names the build."""
_SAME_BYTES = (BUILD, ".rodata.equal", ".data.equal")


def differences(one: "ELFFile", other: "ELFFile") -> Iterator[str]:
    """All of them, a line each. TransformError for what hetcc did not make."""
    yield from _segments(one, other)
    yield from _symbols(one, other)
    yield from _bytes(one, other)
    yield from _sites(one, other)


def _segments(one: "ELFFile", other: "ELFFile") -> Iterator[str]:
    for first, second in zip(one.iter_segments(), other.iter_segments(), strict=False):
        for field in ("p_type", "p_offset", "p_vaddr", "p_memsz", "p_filesz", "p_flags"):
            if first[field] != second[field]:
                yield f"segment at {first['p_vaddr']:#x}: {field} {first[field]} and {second[field]}"
    if one.num_segments() != other.num_segments():
        yield f"{one.num_segments()} and {other.num_segments()} segments"


def _addresses(elf: "ELFFile") -> dict[str, int]:
    from elftools.elf.sections import SymbolTableSection

    table = elf.get_section_by_name(".symtab")
    if not isinstance(table, SymbolTableSection):
        raise TransformError("an executable without symbols: it cannot be checked")
    equal = {number for number, section in enumerate(elf.iter_sections()) if section.name.endswith(EQUAL)}
    wanted = ("STT_FUNC", "STT_OBJECT")
    return {
        symbol.name: symbol["st_value"]
        for symbol in table.iter_symbols()
        if symbol["st_info"]["type"] in wanted and symbol["st_shndx"] in equal
    }


def _symbols(one: "ELFFile", other: "ELFFile") -> Iterator[str]:
    first, second = _addresses(one), _addresses(other)
    for name in sorted(first.keys() | second.keys()):
        places = [f"{of[name]:#x}" if name in of else "nowhere" for of in (first, second)]
        if places[0] != places[1]:
            yield f"{name}: at {places[0]} and {places[1]}"


def _bytes(one: "ELFFile", other: "ELFFile") -> Iterator[str]:
    if any(elf.get_section_by_name(BUILD) is None for elf in (one, other)):
        yield "one does not say of which build it is: an older hetcc made it; link it again"
    for name in _SAME_BYTES:
        (start, here), (_, there) = (_contents(elf, name) for elf in (one, other))
        if here != there:
            at = start + next((at for at, (a, b) in enumerate(zip(here, there, strict=False)) if a != b), len(here))
            yield "they are of two builds" if name == BUILD else f"{name}: differs at {at:#x}"


def _contents(elf: "ELFFile", name: str) -> tuple[int, bytes]:
    """Where a section is mapped, and its bytes; none if it is not there."""
    section = elf.get_section_by_name(name)
    return (0, b"") if section is None else (section["sh_addr"], section.data())


def _sites(one: "ELFFile", other: "ELFFile") -> Iterator[str]:
    first, second = ({site.id: replace(site, address=0, target=0) for site in sites_of(elf)} for elf in (one, other))
    if first.keys() != second.keys():
        yield "they do not have the same sites"
    for number in first.keys() & second.keys():
        if first[number] != second[number]:
            yield f"site {number}: {first[number]} and {second[number]}"


def sites_of(elf: "ELFFile") -> list[Site]:
    """The table of sites. TransformError if there is none."""
    section = elf.get_section_by_name(SECTION)
    if section is None:
        raise TransformError("no table of sites; only what hetcc has made can change ISA")
    return unpack_sites(section.data())
