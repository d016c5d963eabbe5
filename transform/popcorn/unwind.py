"""The frames of a stopped thread, from the innermost to the function that started it, with the registers of each.

The thread stands at a call site's return address. The chain of frame pointers and the sizes of frames in the records
must agree at every step: stack pointer plus size is the CFA, 16 bytes above where the frame pointer points. A register
that a call keeps has, in an outer frame, the value that the next inner one which uses it has saved.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transform.errors import TransformError
from transform.isa.frames import Words, frames
from transform.memory import Memory
from transform.popcorn.machine import ALIGNMENT, FROM_CFA, OUTERMOST
from transform.popcorn.places import Side
from transform.popcorn.sections import CallSite

_WORD = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Registers:
    """A thread's, by DWARF number, stack and frame pointer among them; one that is not there holds nothing."""

    pc: int
    values: Mapping[int, int]


class Frame(NamedTuple):
    """One activation. In all but the innermost, `registers` has those that calls keep, 8 bytes of each."""

    site: CallSite
    cfa: int
    registers: Mapping[int, int]


@dataclass(frozen=True, slots=True)
class Stack:
    """A thread's live stack, from its stack pointer to the outermost frame's CFA."""

    who: str
    low: int
    base: int
    frames: Sequence[Frame]  #: the innermost first
    contents: bytes


def walk(memory: Memory, registers: Registers, side: Side, who: str) -> Stack:
    """The stack of the thread `who`. TransformError where the chain of frames does not hold, AddressError."""
    low = registers.values[side.machine.stack_pointer]
    found = list(_chain(Words(memory), registers, side, who))
    base = found[-1][1]
    contents = memory.read(low, base - low)
    return Stack(who, low, base, _with_registers(found, registers, contents, low, side), contents)


def _chain(words: Words, registers: Registers, side: Side, who: str) -> Iterator[tuple[CallSite, int]]:
    """Each frame's call site and CFA."""
    sites = side.sites
    address, stack = registers.pc, registers.values[side.machine.stack_pointer]
    for place, returns in frames(words, registers.values[side.machine.frame_pointer], who):
        site = sites.at(address)
        if site is None:
            raise TransformError(f"{who}: {address:#x} is behind no call that {sites.name} has records of")
        if site.frame_size % ALIGNMENT or not site.frame_size:
            raise TransformError(f"{who}: the frame of {_named(site)} has no fixed size, which cannot change ISA")
        cfa = place + 8
        if stack + site.frame_size != cfa:
            expected = stack + site.frame_size + FROM_CFA
            raise TransformError(f"{who}: the frame of {_named(site)} is at {cfa + FROM_CFA:#x}, not at {expected:#x}")
        yield site, cfa
        if site.id in OUTERMOST:
            return
        address, stack = returns, cfa
    raise TransformError(f"{who}: its frames end at {stack:#x}, before the function that starts a thread")


def _with_registers(
    found: Sequence[tuple[CallSite, int]], registers: Registers, contents: bytes, low: int, side: Side
) -> list[Frame]:
    result = []
    values = registers.values
    outer = {number: value & 2**64 - 1 for number, value in values.items() if number in side.machine.kept}
    for site, cfa in found:
        result.append(Frame(site, cfa, values))
        values = outer
        if saved := side.saved(site):
            values = outer = outer | {number: _WORD.unpack_from(contents, cfa + at - low)[0] for number, at in saved}
    return result


def _named(site: CallSite) -> str:
    return f"the function that calls at {site.address:#x}"
