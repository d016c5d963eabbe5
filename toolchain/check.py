"""Whether two executables are a pair, of which `transform.isa.likeness` knows: `hetcc --check` for any two; every link
ends with it.
"""

from collections.abc import Iterator
from pathlib import Path

from elftools.elf.elffile import ELFFile

from toolchain.tools import AARCH64, X86_64, Isa, ToolError
from transform.errors import TransformError
from transform.isa.likeness import differences

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
        yield from differences(*elves.values())
