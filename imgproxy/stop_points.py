"""Where a program made by hetcc may be stopped so that it can change ISA, and whether a thread is at such a place.

A thread is at an equivalence point if it is behind a call (a site), or at a system call of the runtime's, before its
instruction or behind it, and if each of its frames returns to a site, up to the outermost. A frame that does not is a
signal handler's: what the kernel has put below it is of one ISA. The table of sites is `transform.sites`.

Used where a process is frozen, so: the standard library only.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from imgnode.ptrace import NATIVE, X86_64

#: Bytes of a system call's instruction.
CALL_SIZE = 2 if NATIVE is X86_64 else 4
#: Bytes of the stack that are read at once: most frames take 50 to 200.
_CHUNK = 4096

#: Reads so many bytes of the process at an address; fewer than that where nothing is mapped.
Read = Callable[[int, int], bytes]


class Kind(StrEnum):
    """The kinds of equivalence points."""

    SITE = "behind a call"
    CALLING = "before a system call"
    CALLED = "in or behind a system call"


@dataclass(frozen=True)
class Point:
    """A thread is at an equivalence point; `frames`: how deep."""

    kind: Kind
    frames: int


@dataclass(frozen=True)
class Elsewhere:
    """A thread is at none. `foreign`: what a frame returns to that is no site, such as the end of a signal handler, for
    that is why; 0 if the chain of frames does not hold."""

    foreign: int | None = None


@dataclass(frozen=True)
class Points:
    """Addresses in a program, of this machine's ISA. `starts`: start and end of each function that calls the
    outermost one of a thread."""

    sites: frozenset[int]
    polls: Mapping[int, int]  #: where to go on instead of a poll, to come to a site soon
    calls: frozenset[int]  #: instructions of system calls
    waits: frozenset[int]  #: the same, of which a result that is no error has to be translated behind them
    starts: tuple[tuple[int, int], ...]

    def plain(self) -> dict[str, Any]:
        """As JSON can have it."""
        return {one.name: list(getattr(self, one.name)) for one in fields(self)} | {"polls": list(self.polls.items())}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> "Points":
        """The same again."""
        starts = tuple((first, end) for first, end in plain["starts"])
        sites, calls, waits = (frozenset(plain[name]) for name in ("sites", "calls", "waits"))
        return cls(sites, dict(plain["polls"]), calls, waits, starts)

    @property
    def addresses(self) -> frozenset[int]:
        """Of the instructions before which a thread is to stop."""
        return self.sites | self.polls.keys() | self.calls | self.waits

    def kind(self, registers: Sequence[int]) -> Kind | None:
        """What a thread is at, by its registers; None if it is no point."""
        pc = registers[NATIVE.pc]
        if pc in self.sites:
            return Kind.SITE
        if pc in self.calls or pc in self.waits:
            return Kind.CALLING
        call = pc - CALL_SIZE
        failed = registers[NATIVE.result] >> 63
        return Kind.CALLED if call in self.calls or (call in self.waits and failed) else None

    def place(self, registers: Sequence[int], read: Read) -> Point | Elsewhere:
        """Where a stopped thread is, from its general registers and memory."""
        sp, fp = registers[NATIVE.sp], registers[NATIVE.fp]
        kind = self.kind(registers)
        if kind is None:
            return Elsewhere()
        if kind is not Kind.SITE:
            returns = _long(read(sp, 8)) if NATIVE is X86_64 else registers[30]
            if returns not in self.sites:
                return Elsewhere(returns)
        frames, foreign = self.walk(fp, read)
        return Point(kind, frames) if foreign is None else Elsewhere(foreign)

    def walk(self, fp: int, read: Read) -> tuple[int, int | None]:
        """How many frames there are, and the first return address that is no site; None if all are."""
        frames, start, chunk = 0, 0, b""
        while True:
            if not start <= fp <= start + len(chunk) - 16:
                start, chunk = fp, read(fp, _CHUNK)
                if len(chunk) < 16:
                    return frames, 0
            saved, returns = struct.unpack_from("<QQ", chunk, fp - start)
            frames += 1
            if saved == 0 and any(first <= returns < end for first, end in self.starts):
                return frames, None
            if returns not in self.sites:
                return frames, returns
            if saved <= fp:
                return frames, 0
            fp = saved


def _long(data: bytes) -> int:
    return int.from_bytes(data, "little") if len(data) == 8 else 0
