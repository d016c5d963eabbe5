"""Values that only the target's executable has, such as the upper part of an address that an instruction has made.

A record copies an operand to a place, or does one operation on what is in the place: several records for one place are
done in their order. Operations are without a sign, but for the arithmetic shift, which takes that of the place's size.
"""

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

from transform.errors import TransformError
from transform.popcorn.places import Place, Side, Where
from transform.popcorn.sections import ArchValue, CallSite, Kind, Operation

_BITS = 64
_WORD = 8
_ALL = (1 << _BITS) - 1
_LOADED = {Operation.LOAD_32: 4, Operation.LOAD_64: 8}
_SHIFTS = (Operation.SHIFT_LEFT, Operation.SHIFT_RIGHT, Operation.SHIFT_RIGHT_SIGNED)
_OPERATIONS: dict[Operation, Callable[[int, int], int]] = {
    Operation.ADD: operator.add,
    Operation.SUBTRACT: operator.sub,
    Operation.MULTIPLY: operator.mul,
    Operation.DIVIDE: operator.floordiv,
    Operation.SHIFT_LEFT: operator.lshift,
    Operation.SHIFT_RIGHT: operator.rshift,
    Operation.SHIFT_RIGHT_SIGNED: operator.rshift,
    Operation.MASK: operator.and_,
}


class Step(NamedTuple):
    """Put an operand to a place, or what an operation on what is there gives."""

    place: Place
    size: int
    operation: Operation
    operand: Place
    operand_size: int


def steps(site: CallSite, side: Side) -> list[Step]:
    """What makes the values at a call site; steps that need nothing of the frame are done here. TransformError."""
    made: list[Step] = []
    for value in site.arch:
        place, operand = _place(value, site, side), _operand(value, site, side)
        operation = value.operation if value.generated else Operation.SET
        step = Step(place, value.size, operation, operand, _LOADED.get(value.operation, value.operand_size))
        last = made[-1] if made else None
        if last is None or last[:2] != step[:2] or not (_is_fixed(last) and operand.where is Where.VALUE):
            made.append(step)
        else:
            made[-1] = last._replace(operand=Place(Where.VALUE, calculated(step, last.operand.at, operand.at)))
    return made


def calculated(step: Step, old: int, operand: int) -> int:
    """What a step puts to its place, which has `old`. TransformError for an operation that gives nothing."""
    operation = step.operation
    if operation is Operation.SET:
        return operand & (1 << 8 * step.size) - 1
    if (operation in _SHIFTS and operand >= _BITS) or (operation is Operation.DIVIDE and not operand):
        raise TransformError(f"a value of one ISA is made by {operation.name} with {operand:#x}")
    if operation is Operation.SHIFT_RIGHT_SIGNED:
        old -= (old >> 8 * step.size - 1) << 8 * step.size
    return _OPERATIONS[operation](old, operand) & (1 << 8 * step.size) - 1


def _is_fixed(step: Step) -> bool:
    return step.operation is Operation.SET and step.operand.where is Where.VALUE


def _place(value: ArchValue, site: CallSite, side: Side) -> Place:
    if value.kind is Kind.REGISTER:
        return side.register(site, value.register, value.offset, value.size)
    if value.kind is Kind.INDIRECT and 0 < value.size <= 2 * _WORD:
        return side.memory(site, value.register, value.offset, value.size)
    raise _unknown(value, site)


def _operand(value: ArchValue, site: CallSite, side: Side) -> Place:
    if value.operand is Kind.CONSTANT and value.operation in _LOADED and not value.generated:
        return Place(Where.LOADED, value.operand_value & _ALL)
    if value.operation is not Operation.SET and (not value.generated or value.operation not in _OPERATIONS):
        raise _unknown(value, site)
    if value.operand is Kind.CONSTANT:
        return Place(Where.VALUE, value.operand_value & _ALL)
    if value.operand is Kind.REGISTER:
        return side.register(site, value.operand_register, 0, value.operand_size)
    if value.operand is Kind.CONSTANT_INDEX or value.generated:
        raise _unknown(value, site)
    at = side.in_frame(site, value.operand_register, value.operand_value)
    if value.operand is Kind.DIRECT and -site.frame_size <= at <= -value.operand_size < 0:
        return Place(Where.MEMORY, at)
    if value.operand is Kind.INDIRECT:
        return Place(Where.ADDRESS, at)
    raise _unknown(value, site)


def _unknown(value: ArchValue, site: CallSite) -> TransformError:
    what = f"{value.operation.name} of {value.operand.name}, to {value.kind.name} of {value.size} bytes"
    return TransformError(f"call site {site.id} ({site.address:#x}): a value of one ISA is made by {what}")


def make(made: Sequence[Step], read: Callable[[Place, int], int], write: Callable[[Place, int, int], None]) -> None:
    """Do the steps. TransformError for an operation that gives nothing; whatever `read` and `write` raise."""
    for step in made:
        operand = read(step.operand, step.operand_size)
        old = 0 if step.operation is Operation.SET else read(step.place, step.size)
        write(step.place, step.size, calculated(step, old, operand))
