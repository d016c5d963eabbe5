"""The target's stack and registers, made from the source's stack: frame by frame, from the innermost.

The outermost frame keeps its CFA, so that what lies above it (arguments, environment) stays; the others follow below,
in the sizes that the target's records give. Everything in them that no record names is zero. A value in a register that
calls keep is written where the next inner frame that uses the register has saved it, or is in the register itself.
"""

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transform.errors import TransformError
from transform.popcorn.arch_values import make
from transform.popcorn.machine import FROM_CFA, Machine
from transform.popcorn.matching import Plan
from transform.popcorn.places import Place, Side, Where
from transform.popcorn.pointers import Moved, Pointers
from transform.popcorn.unwind import Frame, Registers, Stack

_WORD = struct.Struct("<Q")
_LOW = 2**64 - 1

Load = Callable[[int, int], bytes]
"""Bytes of the process at an address, as the target's executable has them where it is code or constant."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A thread of the target: its registers, and its stack's bytes from `low` on."""

    registers: Registers
    low: int
    contents: bytes


class Layout:
    """Where the frames of one stack are on the target. TransformError for a value that is on neither."""

    def __init__(self, stack: Stack, plans: Sequence[Plan]) -> None:
        self.stack, self.plans = stack, plans
        cfa, cfas = stack.base, []
        for plan in reversed(plans):
            cfas.append(cfa)
            cfa -= plan.target.frame_size
        self.low = cfa
        self.cfas = cfas[::-1]
        for frame, plan, cfa in zip(stack.frames, plans, self.cfas, strict=True):
            if frame.cfa + plan.reach[0] > stack.base or cfa + plan.reach[1] > stack.base:
                raise TransformError(f"{stack.who}: call site {frame.site.id} has a value beyond the end of the stack")

    def variables(self) -> list[Moved]:
        """Every variable of every frame."""
        return [
            (frame.cfa + source, frame.cfa + source + size, cfa + target)
            for frame, plan, cfa in zip(self.stack.frames, self.plans, self.cfas, strict=True)
            for size, source, target in plan.variables
        ]

    def frame_pointers(self) -> dict[int, int]:
        """The source's, and the target's for each."""
        frames = zip(self.stack.frames, self.cfas, strict=True)
        return {frame.cfa + FROM_CFA: cfa + FROM_CFA for frame, cfa in frames}


class TargetStack:
    """The stack in the making, and the registers of the innermost frame. `depth` and `cfa` are of the frame at hand."""

    def __init__(self, layout: Layout, machine: Machine, load: Load) -> None:
        self.machine, self.who, self._load = machine, layout.stack.who, load
        self.low = layout.low
        self.contents = bytearray(layout.stack.base - layout.low)
        self.registers: dict[int, int] = {}
        self.depth, self.cfa = 0, 0
        self._saved_at: dict[int, int] = {}
        self._own: dict[int, int] = {}

    def enter(self, depth: int, cfa: int, frame_pointer: int, returns: int) -> None:
        """Go to the next outer frame: its CFA, its caller's frame pointer, where it returns to."""
        self.depth, self.cfa = depth, cfa
        self._own = {}
        struct.pack_into("<QQ", self.contents, cfa - self.low + FROM_CFA, frame_pointer, returns)

    def leave(self, plan: Plan) -> None:
        """The frame is made: what it keeps of its caller. TransformError: it uses a register that it has not saved."""
        saved = {number: self.cfa - self.low + at for number, at in plan.saved}
        if self._own and (lost := self._own.keys() & self.machine.kept - saved.keys()):
            reason = f"uses register {min(lost)}, which its caller keeps, and does not save it"
            raise TransformError(f"{self.who}: the function that calls at {plan.target.address:#x} {reason}")
        self._saved_at |= saved

    def write(self, place: Place, size: int, value: int) -> None:
        """Put a value there. TransformError for a register that does not survive."""
        where, at = place
        if where is Where.MEMORY:
            start = self.cfa - self.low + at
            self.contents[start : start + size] = value.to_bytes(size, "little")
            return
        self._own[at] = value
        if self.depth and (at not in self.machine.kept or size > 8):
            raise TransformError(f"{self.who}: {size} bytes in register {at} of a caller, which a call does not keep")
        if at in self._saved_at:
            _WORD.pack_into(self.contents, self._saved_at[at], value & _LOW)
        else:
            self.registers[at] = value

    def read(self, place: Place, size: int) -> int:
        """What is there. TransformError for a register that this frame's values have not set."""
        where, at = place
        if where is Where.VALUE:
            return at
        if where is Where.LOADED:
            return int.from_bytes(self._load(at, size), "little")
        if where is Where.ADDRESS:
            return self.cfa + at
        if where is Where.MEMORY:
            start = self.cfa - self.low + at
            return int.from_bytes(self.contents[start : start + size], "little")
        if at not in self._own:
            raise TransformError(f"{self.who}: a value is made from register {at}, which has none")
        return self._own[at] & (1 << 8 * size) - 1


def rewrite(layout: Layout, pointers: Pointers, source: Side, target: Side, load: Load) -> Rewritten:
    """The thread for the target. TransformError for whatever is not certain."""
    stack, plans = layout.stack, layout.plans
    made = TargetStack(layout, target.machine, load)
    callers = [*(cfa + FROM_CFA for cfa in layout.cfas[1:]), 0]
    returns = [*(plan.target.address for plan in plans[1:]), 0]
    for depth, (frame, plan) in enumerate(zip(stack.frames, plans, strict=True)):
        made.enter(depth, layout.cfas[depth], callers[depth], returns[depth])
        _copy_variables(made, stack, frame, plan, pointers)
        _copy_values(made, stack, frame, plan, pointers)
        make(plan.made, made.read, made.write)
        if depth + 1 < len(plans):
            made.leave(plan)
    return Rewritten(_registers(made, layout, pointers, source.machine), made.low, bytes(made.contents))


def _copy_variables(made: TargetStack, stack: Stack, frame: Frame, plan: Plan, pointers: Pointers) -> None:
    start, goes_to = frame.cfa - stack.low, made.cfa - made.low
    for size, source, target in plan.variables:
        data = stack.contents[start + source : start + source + size]
        if size >= _WORD.size:
            data = pointers.moved_words(data, start + source, stack.who)
        made.contents[goes_to + target : goes_to + target + size] = data


def _copy_values(made: TargetStack, stack: Stack, frame: Frame, plan: Plan, pointers: Pointers) -> None:
    low, high, goes_to, contents = pointers.low, pointers.high, made.cfa - made.low, made.contents
    for size, source, targets in plan.moves:
        value = _read(stack, frame, source, size)
        if size == _WORD.size:
            if low <= value < high:
                value = pointers.moved(value, stack.who)
        elif size > _WORD.size:
            data = value.to_bytes(size, "little")
            value = int.from_bytes(pointers.moved_words(data, 0, stack.who), "little")
        for place in targets:
            if size == _WORD.size and place.where is Where.MEMORY:
                _WORD.pack_into(contents, goes_to + place.at, value)
            else:
                made.write(place, size, value)


def _read(stack: Stack, frame: Frame, place: Place, size: int) -> int:
    where, at = place
    if where is Where.MEMORY:
        start = frame.cfa + at - stack.low
        if size == _WORD.size:
            return int(_WORD.unpack_from(stack.contents, start)[0])
        return int.from_bytes(stack.contents[start : start + size], "little")
    if where is Where.ADDRESS:
        return frame.cfa + at
    value = at if where is Where.VALUE else frame.registers.get(at)
    if value is None or (where is Where.REGISTER and size > 8 and frame is not stack.frames[0]):
        reason = f"has {size} bytes in register {at}, which the calls since do not keep"
        raise TransformError(f"{stack.who}: the function that calls at {frame.site.address:#x} {reason}")
    return value & (1 << 8 * size) - 1


def _registers(made: TargetStack, layout: Layout, pointers: Pointers, source: Machine) -> Registers:
    """The innermost frame's; what the call that has returned may have left in result registers is there, too."""
    machine, innermost = made.machine, layout.stack.frames[0]
    pc = layout.plans[0].target.address
    results: dict[int, int] = {}
    for one, other in zip(source.results, machine.results, strict=True):
        results[other] = pointers.moved(innermost.registers.get(one, 0), layout.stack.who)
    for one, other in zip(source.vector_results, machine.vector_results, strict=True):
        results[other] = innermost.registers.get(one, 0)
    frame = {machine.frame_pointer: layout.cfas[0] + FROM_CFA, machine.stack_pointer: layout.low}
    if machine.return_address in machine.general:
        frame[machine.return_address] = pc
    values: Mapping[int, int] = results | made.registers | frame
    return Registers(pc, dict(values))
