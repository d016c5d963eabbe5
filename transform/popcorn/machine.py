"""What is fixed for an ISA when frames are walked and made: DWARF numbers of registers, and which a call keeps.

On both, a function that has call sites keeps a frame pointer, which points to the caller's; the return address is above
it, and then the caller's stack pointer, when the call is made, is the canonical frame address (CFA). DWARF numbers:
System V ABI for AMD64, chapter 3.6.2; DWARF for the Arm 64-bit architecture, chapter 4.1.
"""

from dataclasses import dataclass

FROM_CFA = -16
"""Where a frame pointer points, seen from the CFA; the return address is 8 bytes above."""
ALIGNMENT = 16
"""Of CFAs and stack pointers at call sites."""
OUTERMOST = frozenset(range(2**64 - 3, 2**64))
"""Ids of the call sites in the functions that start a program and its threads: where a stack ends."""


@dataclass(frozen=True)
class Machine:
    """Numbers are DWARF's."""

    name: str
    frame_pointer: int
    stack_pointer: int
    return_address: int  #: what unwind entries call it
    general: range  #: of 8 bytes, frame and stack pointer among them
    vectors: range  #: of 16 bytes
    kept: frozenset[int]  #: by calls, 8 bytes of each
    results: tuple[int, ...]
    vector_results: tuple[int, ...]

    def size(self, register: int) -> int:
        """Bytes of a register that can hold a value, else 0."""
        if register in self.general:
            return 8
        return 16 if register in self.vectors else 0


X86_64 = Machine(
    name="x86-64",
    frame_pointer=6,
    stack_pointer=7,
    return_address=16,
    general=range(16),
    vectors=range(17, 33),
    kept=frozenset({3, 6, 12, 13, 14, 15}),
    results=(0, 1),
    vector_results=tuple(range(17, 25)),
)
AARCH64 = Machine(
    name="aarch64",
    frame_pointer=29,
    stack_pointer=31,
    return_address=30,
    general=range(32),
    vectors=range(64, 96),
    kept=frozenset({*range(19, 30), *range(72, 80)}),
    results=(0, 1),
    vector_results=tuple(range(64, 72)),
)
MACHINES = {machine.name: machine for machine in (X86_64, AARCH64)}
