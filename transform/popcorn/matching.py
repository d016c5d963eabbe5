"""What goes where at a call site: the live values of the two executables' records, put together.

The n-th value of one is the n-th of the other; further places of a value follow it and are all written. All that can be
checked without a stack is checked here, once for a site.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from transform.errors import TransformError
from transform.popcorn.arch_values import Step, steps
from transform.popcorn.places import Place, Side, Where, doubt
from transform.popcorn.sections import CallSite, Kind, LiveValue

CONSTANTS = (Kind.CONSTANT, Kind.CONSTANT_INDEX)
VA_LIST = {24, 32}
"""Bytes of a va_list on x86-64 and aarch64."""


class Move(NamedTuple):
    """A value of `size` bytes that is in one place of the source's frame, and in all of these of the target's."""

    size: int
    source: Place
    targets: tuple[Place, ...]


class Variable(NamedTuple):
    """A variable on the stack: where it begins in each frame, from the CFA."""

    size: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What becomes of a frame."""

    target: CallSite
    variables: Sequence[Variable]
    moves: Sequence[Move]
    made: Sequence[Step]  #: values of the target's ISA alone
    saved: Sequence[tuple[int, int]]  #: by the target's frame: register, and bytes from the CFA
    reach: tuple[int, int]  #: how far values are beyond the CFA on each side, in what the caller has passed


def match(site: CallSite, source: Side, target: Side) -> Plan:
    """The plan for the source's call site. TransformError for records of which it is not certain what they mean."""
    other = target.sites.with_id(site.id)
    if other is None:
        raise TransformError(f"{target.sites.name}: has no call site {site.id}, which {source.sites.name} has")
    ours, theirs = _values(site), _values(other)
    if len(ours) != len(theirs):
        counts = f"{len(ours)} live values on {source.machine.name}, {len(theirs)} on {target.machine.name}"
        raise doubt(site, counts)
    moves, variables = [], []
    for (value, *_), places in zip(ours, theirs, strict=True):
        written = [place for place in places if not place.temporary and place.kind not in CONSTANTS]
        _compare(site, value, places, written)
        if value.alloca and written:
            starts = _place(site, value, source), _place(other, written[0], target)
            variables.append(Variable(value.size, starts[0].at, starts[1].at))
        elif written:
            goes = tuple(_place(other, place, target) for place in written)
            moves.append(Move(written[0].size, _read_from(site, value, source), goes))
    made = steps(other, target)
    return Plan(other, variables, moves, made, target.saved(other), _reach(variables, moves, made))


def _reach(variables: Sequence[Variable], moves: Sequence[Move], made: Sequence[Step]) -> tuple[int, int]:
    ours = [at + size for size, at, _ in variables]
    theirs = [at + size for size, _, at in variables]
    ours += [source.at + size for size, source, _ in moves if source.where is Where.MEMORY]
    theirs += [place.at + size for size, _, places in moves for place in places if place.where is Where.MEMORY]
    theirs += [step.place.at + step.size for step in made if step.place.where is Where.MEMORY]
    return max(ours, default=0), max(theirs, default=0)


def _values(site: CallSite) -> list[list[LiveValue]]:
    """Each live value's places, the first of which is not a duplicate."""
    values: list[list[LiveValue]] = []
    for value in site.live:
        if not value.duplicate:
            values.append([value])
        elif not values or value.alloca or values[-1][0].alloca:
            raise doubt(site, "a further place of no value")
        else:
            values[-1].append(value)
    return values


def _compare(site: CallSite, value: LiveValue, places: Sequence[LiveValue], written: Sequence[LiveValue]) -> None:
    """Whether the records can be of one value."""
    for place in places:
        if place.pointer != value.pointer:
            raise doubt(site, "a value that is a pointer on one ISA only")
        if value.kind is place.kind is Kind.CONSTANT and value.offset != place.offset:
            raise doubt(site, f"the constants {value.offset} and {place.offset}")
    for place in written:
        if place.alloca != value.alloca:
            raise doubt(site, "a variable on the stack on one ISA only")
        if value.kind not in CONSTANTS and place.size != value.size:
            what = ", as a va_list has, which differs" if {place.size, value.size} == VA_LIST else ""
            raise doubt(site, f"a value of {value.size} and {place.size} bytes{what}")
        if place.size != written[0].size:
            raise doubt(site, f"places of {place.size} and {written[0].size} bytes for one value")
        if place.pointer and not place.alloca and place.size != 8:
            raise doubt(site, f"a pointer of {place.size} bytes")


def _read_from(site: CallSite, value: LiveValue, side: Side) -> Place:
    if value.kind is Kind.CONSTANT:
        return Place(Where.VALUE, value.offset)
    if value.kind is Kind.CONSTANT_INDEX:
        return Place(Where.VALUE, side.sites.constant(site, value.offset))
    if value.kind is Kind.DIRECT and value.temporary:
        return Place(Where.ADDRESS, side.in_frame(site, value.register, value.offset))
    return _place(site, value, side)


def _place(site: CallSite, value: LiveValue, side: Side) -> Place:
    """A place in a register or in memory that values of this size can have."""
    if value.kind is Kind.REGISTER and not value.alloca:
        return side.register(site, value.register, value.offset, value.size)
    if value.alloca != (value.kind is Kind.DIRECT):
        raise doubt(site, "a variable that is not in memory, or what is no variable at a variable's place")
    return side.memory(site, value.register, value.offset, value.size)
