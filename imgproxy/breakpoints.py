"""Breakpoints in the text of a process that is traced: planted, all at once, and lifted again.

Written by page, through /proc/PID/mem: thousands take 1 ms. Pages that had some are the process's own from then on,
with the bytes that they had.
"""

import os
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from imgnode.ptrace import NATIVE, X86_64

#: int3; brk #0.
TRAP = b"\xcc" if NATIVE is X86_64 else b"\x00\x00\x20\xd4"
#: How far behind it the program counter is when it has trapped.
BEHIND = 1 if NATIVE is X86_64 else 0
_PAGE = 4096


@dataclass(frozen=True)
class _Range:
    """Of a page, from the first breakpoint to the last."""

    address: int
    original: bytes
    planted: bytes


class Breakpoints:
    """Breakpoints at `addresses` of the process whose /proc/PID/mem is open as `memory`."""

    def __init__(self, memory: int, addresses: Iterable[int]) -> None:
        self.addresses = frozenset(addresses)
        self.planted = False
        self._memory = memory
        self._ranges: list[_Range] = []

    def plant(self) -> None:
        """All of them. OSError."""
        if not self._ranges:
            self._ranges = list(self._read())
        self.planted = True
        for one in self._ranges:
            self._write(one.planted, one.address)

    def lift(self) -> None:
        """All of them; nothing if none are planted, or the process has ended."""
        if self.planted:
            for one in self._ranges:
                self._write(one.original, one.address)
            self.planted = False

    def heal(self, memory: int) -> None:
        """Lift those that a copy of the process has, too."""
        for one in self._ranges if self.planted else []:
            os.pwrite(memory, one.original, one.address)

    def lift_one(self, address: int) -> None:
        """That one, for a moment."""
        one = next(one for one in self._ranges if 0 <= address - one.address < len(one.original))
        at = address - one.address
        self._write(one.original[at : at + len(TRAP)], address)

    def plant_one(self, address: int) -> None:
        """It again."""
        self._write(TRAP, address)

    def _write(self, data: bytes, address: int) -> None:
        if os.pwrite(self._memory, data, address) not in (len(data), 0):  # 0: it has no memory any more
            raise OSError(f"the text at {address:#x} cannot be written")

    def _read(self) -> Iterator[_Range]:
        ordered = sorted(self.addresses)
        for page in sorted({address // _PAGE for address in ordered}):
            here = ordered[bisect_left(ordered, page * _PAGE) : bisect_left(ordered, (page + 1) * _PAGE)]
            start, size = here[0], here[-1] + len(TRAP) - here[0]
            original = os.pread(self._memory, size, start)
            if len(original) < size:
                raise OSError(f"the text at {start:#x} cannot be read")
            planted = bytearray(original)
            for address in here:
                planted[address - start : address - start + len(TRAP)] = TRAP
            yield _Range(start, original, bytes(planted))
