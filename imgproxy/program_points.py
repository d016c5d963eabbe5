"""The equivalence points of a program that hetcc has made, from its executable.

All is in its own tables: the sites, and the symbols of the runtime.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from imgnode.ptrace import NATIVE, X86_64
from imgproxy.stop_points import Points
from imgwire.errors import UsageError
from transform.errors import TransformError
from transform.sites import Kind, read_sites

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

#: Whose callees have the outermost frame of a thread: on the stack that the program is given, and on that of a thread.
_STARTS = ("__unified_enter", "__clone")
_MACHINE = "EM_X86_64" if NATIVE is X86_64 else "EM_AARCH64"


@dataclass(frozen=True)
class Program:
    """An executable of hetcc's for this machine: its points, and its functions by name."""

    points: Points
    functions: dict[str, int]


def read_program(path: Path) -> Program:
    """Read an executable. UsageError for one that is not hetcc's, or not for this machine; OSError."""
    from elftools.common.exceptions import ELFError  # here: every start of imgproxy would pay for it, by a tenth
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        name = path if path.name != "exe" else path.readlink()
        try:
            elf = ELFFile(file)
        except ELFError:
            raise UsageError(f"{name}: not an executable (ELF), so hetcc did not make it") from None
        if elf.elfclass == 32:
            raise UsageError(f"{name}: a 32-bit program: only those of hetcc, for 64 bits, have points to stop at")
        if elf["e_machine"] != _MACHINE:
            raise UsageError(f"{name}: is for {elf['e_machine']}, and this machine is {NATIVE.machine}")
        try:
            return _program(path, elf)
        except TransformError:
            raise UsageError(f"{name}: hetcc did not make it, so there are no points to stop it at") from None


def _program(path: Path, elf: "ELFFile") -> Program:
    from elftools.elf.sections import SymbolTableSection

    sites = read_sites(path)
    symbols = elf.get_section_by_name(".symtab")
    if not isinstance(symbols, SymbolTableSection):
        raise TransformError("no symbols")
    functions = {one.name: (one["st_value"], one["st_size"]) for one in symbols.iter_symbols() if one["st_value"]}
    starts = tuple((functions[name][0], sum(functions[name])) for name in _STARTS)
    of_kind = {kind: frozenset(one.address for one in sites if one.kind is kind) for kind in Kind}
    polls = {one.address: one.target for one in sites if one.kind is Kind.POLL}
    points = Points(of_kind[Kind.CALL], polls, of_kind[Kind.SYSCALL], of_kind[Kind.WAIT], starts)
    return Program(points, {name: start for name, (start, _) in functions.items()})
