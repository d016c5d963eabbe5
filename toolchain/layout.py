"""Where everything lies: every function and variable at the same address on both ISAs.

Each has a section of its own, and a slot as large as the larger of its two. What exists for one ISA only, and is never
named by anything that a process keeps (leaves in C's convention, constants of its code, the table of sites), has ranges
of its own, as large as the larger of the two, so that the segments are equal too.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from toolchain.tools import ISAS, Isa, run
from transform.isa.likeness import BUILD

PAGE = 0x1000
#: Where one ISA's own code and constants begin, and what is equal.
ISA_TEXT, ISA_DATA, EQUAL = 0x410000, 0x600000, 0x800000
#: Alignment of a function.
_TEXT_ALIGN = 16
_SECTION = re.compile(
    r"\s*\[\s*\d+\]\s+(\S+)\s+\S+\s+[0-9a-f]+\s+[0-9a-f]+\s+([0-9a-f]+)\s+\S+\s+\S*?\s*\d+\s+\d+\s+(\d+)$"
)


@dataclass(frozen=True)
class Section:
    """Bytes and alignment."""

    size: int
    align: int


def sections_of(objects: Sequence[Path]) -> dict[str, Section]:
    """The sections of some objects by name."""
    found: dict[str, Section] = {}
    for obj in objects:
        for line in run("sections", "llvm-readelf", "-S", "-W", obj).splitlines():
            if match := _SECTION.match(line):
                found[match[1]] = Section(int(match[2], 16), int(match[3]))
    return found


def ranges_of(executables: Sequence[Path]) -> tuple[int, int]:
    """How many bytes the ranges for code and for constants of one ISA are to have, so that each executable's fit."""
    found = [sections_of([path]) for path in executables]
    text, data = (max(sections[name].size for sections in found) for name in (".text.isa", ".rodata.isa"))
    return _pages(text), _pages(data)


def _pages(size: int) -> int:
    return -(-size // PAGE) * PAGE


def linker_script(sections: Mapping[Isa, Mapping[str, Section]], build: bytes, ranges: tuple[int, int] = (0, 0)) -> str:
    """The linker script of both ISAs. `build`: a digest that no other program has, a multiple of 8 bytes. `ranges`:
    bytes of code and of constants of one ISA; 0: as many as there are."""
    at = EQUAL
    parts = []
    for output, prefix, segment in (
        (".text.equal", ".text.", "text"),
        (".rodata.equal", ".u.rodata.", "rodata"),
        (".tdata.equal", ".u.tdata.", "rodata :tls"),
        (".data.equal", ".u.data.", "data"),
        (".bss.equal", ".bss.u.", "data"),
    ):
        if output == ".tdata.equal" and not _names(prefix, sections):
            continue
        part, end = _range(output, prefix, segment, at, sections)
        parts.append(part)
        at = _pages(end)
    tls = "  tls PT_TLS FLAGS(4);\n" if _names(".u.tdata.", sections) else ""
    fill = [
        f" . = {start + size:#x};" if size else "" for start, size in zip((ISA_TEXT, ISA_DATA), ranges, strict=True)
    ]
    words = " ".join(f"QUAD({int.from_bytes(build[at : at + 8], 'little'):#x})" for at in range(0, len(build), 8))
    return _SCRIPT.format(
        tls=tls,
        text=ISA_TEXT,
        data=ISA_DATA,
        fill_text=fill[0],
        fill_data=fill[1],
        equal="\n".join(parts),
        build_section=BUILD,
        build=words,
    )


_SCRIPT = """\
PHDRS {{
  headers PT_LOAD FILEHDR PHDRS FLAGS(4);
  isatext PT_LOAD FLAGS(5);
  isadata PT_LOAD FLAGS(4);
  text PT_LOAD FLAGS(5);
  rodata PT_LOAD FLAGS(4);
  data PT_LOAD FLAGS(6);
{tls}  stack PT_GNU_STACK FLAGS(6);
}}
ENTRY(_start)
SECTIONS {{
  .headers {text:#x} - {page:#x} : {{ BYTE(0) }} :headers
  .text.isa {text:#x} : {{ *(.text) *libgcc.a:(.text.*){fill_text} }} :isatext
  .rodata.isa {data:#x} : {{ *(.isa.sites .rodata .rodata.* .data .bss .got .got.*){fill_data} }} :isadata
{equal}
  .unified.sites 0 : {{ QUAD(0) QUAD(0) *(.unified.sites) }}
  {build_section} 0 : {{ {build} }}
  /DISCARD/ : {{ *(.comment .llvm_stackmaps .eh_frame .note.GNU-stack) }}
}}
""".replace("{page:#x}", f"{PAGE:#x}")


def _range(
    output: str, prefix: str, segment: str, start: int, sections: Mapping[Isa, Mapping[str, Section]]
) -> tuple[str, int]:
    lines, at = [], start
    for name in _names(prefix, sections):
        both = [sections[isa][name] for isa in ISAS if name in sections[isa]]
        align = max(_TEXT_ALIGN if segment == "text" else 1, *(one.align for one in both))
        at = -(-at // align) * align
        lines.append(f"    . = {at:#x}; KEEP(*({name}))")
        at += max(1, *(one.size for one in both))
    body = "\n".join(lines)
    return f"  {output} {start:#x} : {{\n{body}\n    . = {at:#x};\n  }} :{segment}", at


def _names(prefix: str, sections: Mapping[Isa, Mapping[str, Section]]) -> list[str]:
    return list(dict.fromkeys(name for isa in ISAS for name in sections[isa] if name.startswith(prefix)))
