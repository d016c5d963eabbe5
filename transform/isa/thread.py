"""A thread that stands at a site, as neither ISA has it: what a core image of the other one is made of."""

from dataclasses import dataclass, field, replace
from enum import Enum

VECTORS = 8
"""Vector registers that can hold results of a call: v0 to v7, xmm0 to xmm7."""


class Place(Enum):
    """Where a thread stands."""

    AFTER_CALL = "behind a call, which has returned"
    BEFORE_SYSCALL = "in the system call stub, the call is to be made (again)"
    AFTER_SYSCALL = "in the system call stub, the call is made"


class Rounding(Enum):
    """Rounding of floating-point results."""

    NEAREST = 0
    UP = 1
    DOWN = 2
    ZERO = 3


@dataclass(frozen=True, slots=True)
class FloatingPoint:
    """Control and status of floating point. `raised` has bits of FPSR: invalid, division, overflow, underflow, inexact
    from bit 0 on, and a denormal operand in bit 7."""

    rounding: Rounding = Rounding.NEAREST
    flush: bool = False
    raised: int = 0
    vectors: tuple[int, ...] = (0,) * VECTORS  #: 128 bits each


@dataclass(frozen=True, slots=True)
class Thread:
    """Addresses and values as in the process. `stack`: the stack pointer without what a call of x86-64 pushes."""

    place: Place
    site: int  #: id
    frame: int  #: frame pointer
    stack: int
    thread_pointer: int
    clear_tid: int
    result: int = 0
    second_result: int = 0
    link: int = 0  #: in the stub: where it returns to; an address of the ISA that is described
    call: tuple[int, ...] = ()  #: before a system call: its number (aarch64's) and six arguments
    floating_point: FloatingPoint = field(default_factory=FloatingPoint)

    def returning_to(self, link: int) -> "Thread":
        """The same with another `link`."""
        return replace(self, link=link)
