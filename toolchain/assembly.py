"""Assembly as code generation wrote it: markers behind calls become labels right behind them, and a table of sites.

The pass puts a marker with a number behind each call that is a stop. Between call and marker there may be instructions,
and the return address is what counts: so the label goes right behind the call. Where that is also the start of another
block, which is reached by other ways with live registers, a nop of its own keeps the two apart. A poll's marker becomes
the poll: a nop with a label.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from toolchain.tools import AARCH64, X86_64, Isa, ToolError
from transform.sites import SECTION, Kind

_MARKER = re.compile(r"UNIFIED-SITE (\d+) (\d+)")
_POLL = re.compile(r"UNIFIED-POLL (\d+) (\d+) (\S+)")
_CALL = {X86_64: re.compile(r"\tcallq?\s"), AARCH64: re.compile(r"\tblr?\s")}
_COMMENT = {X86_64: "#", AARCH64: "//"}
_LABEL = re.compile(r"[.\w$\"]+:")
#: A poll, in which nothing happens.
POLL = {X86_64: "\tnop", AARCH64: "\tnop"}
#: The table that longjmp reads: how many there are, then the return address of each site by number.
TABLE = "unified_sites"


@dataclass(frozen=True)
class Marker:
    """A site in code: its number, that of the frame that it is in, and for a poll the label where it goes on."""

    number: int
    frame: int
    target: str = ""


@dataclass(frozen=True)
class Marked:
    """Assembly with labels for its sites."""

    text: str
    sites: Mapping[int, Marker]


def mark_sites(isa: Isa, text: str) -> Marked:
    """Turn markers into labels. ToolError for one without a call before it, or one that is there twice."""
    lines: list[str] = []
    sites: dict[int, Marker] = {}
    call: int | None = None
    for line in text.split("\n"):
        if found := _MARKER.search(line):
            if call is None:
                raise _moved(isa, found[1])
            _add(isa, sites, Marker(int(found[1]), int(found[2])))
            lines.insert(call + 1, f".Lsite{found[1]}:")
            call = None
        elif found := _POLL.search(line):
            _add(isa, sites, Marker(int(found[1]), int(found[2]), found[3]))
            lines += [f".Lsite{found[1]}:", POLL[isa].format(target=found[3])]
        elif line.strip() not in ("#APP", "#NO_APP", "//APP", "//NO_APP"):
            lines.append(line)
            if _CALL[isa].match(line):
                call = len(lines) - 1
    return Marked("\n".join([*_apart(isa, lines), *_table(sites), *_records(sites)]) + "\n", sites)


def _add(isa: Isa, sites: dict[int, Marker], marker: Marker) -> None:
    if marker.number in sites:
        raise _moved(isa, str(marker.number))
    sites[marker.number] = marker


def _moved(isa: Isa, number: str) -> ToolError:
    return ToolError(f"site {number} of {isa.name}: code generation has moved or doubled its marker")


def _apart(isa: Isa, lines: list[str]) -> list[str]:
    """A nop behind each site that would also be the start of a block."""
    apart: list[str] = []
    for index, line in enumerate(lines):
        apart.append(line)
        if line.startswith(".Lsite") and _starts_block(isa, lines, index + 1):
            apart.append("\tnop")
    return apart


def _starts_block(isa: Isa, lines: list[str], index: int) -> bool:
    while index < len(lines):
        line = lines[index].strip()
        if line and not line.startswith((_COMMENT[isa], ".loc", ".p2align")):
            return bool(_LABEL.match(line))
        index += 1
    return True


def _table(sites: Mapping[int, Marker]) -> list[str]:
    count = max(sites, default=-1) + 1
    entries = [f"\t.quad {f'.Lsite{number}' if number in sites else 0}" for number in range(count)]
    head = ['\t.section .isa.sites,"a",@progbits', f"\t.globl {TABLE}", "\t.p2align 3"]
    return [*head, f"{TABLE}:", f"\t.quad {count}", *entries]


def _records(sites: Mapping[int, Marker]) -> list[str]:
    """The table in transform/sites.py, but for its head; in the place of a frame's size is the number of the frame."""
    records = []
    for number, marker in sites.items():
        kind = Kind.POLL if marker.target else Kind.CALL
        records.append(
            f"\t.quad .Lsite{number}, {marker.target or 0}\n\t.long {number}, {marker.frame}, {int(kind)}, 0"
        )
    return [f'\t.section {SECTION},"",@progbits', *records]
