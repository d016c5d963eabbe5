"""Programs made up, each for both ISAs: functions, what their frames save, and what is live at each of their calls.

Everything here is drawn from a seed; encoding.py makes executables of it. The numbers of registers are written down
once more, so that a mistake on one side is seen. What a stack of such a program holds is in stacks.py.
"""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

REGISTER, DIRECT, INDIRECT, CONSTANT, INDEX = 1, 2, 3, 4, 5
TEMPORARY, DUPLICATE, ALLOCA, POINTER = 1, 2, 4, 8
TEXT = 0x500000
CONSTANTS_AT, CONSTANTS = 0x700000, struct.pack("<QQ", 0x1122334455667788, 0x99AABBCCDDEEFF00)
"""What a value of one ISA can be loaded from."""
OUTGOING = 64
"""Bytes at the low end of each frame for arguments of calls."""
POOL = tuple(0x1000000000 + number * 0x111 for number in range(6))


@dataclass(frozen=True)
class Isa:
    """DWARF numbers."""

    name: str
    frame: int
    stack: int
    link: int
    kept: tuple[int, ...]
    kept_vectors: tuple[int, ...]
    scratch: tuple[int, ...]  #: neither kept nor for results
    scratch_vectors: tuple[int, ...]
    results: tuple[int, ...]
    vector_results: tuple[int, ...]
    step: int  #: between return addresses


X86 = Isa("x86-64", 6, 7, 16, (3, 12, 13, 14, 15), (), (2, 4, 5, 8, 9, 10, 11), tuple(range(25, 33)), (0, 1),
          tuple(range(17, 25)), 0x25)  # fmt: skip
ARM = Isa("aarch64", 29, 31, 30, tuple(range(19, 29)), tuple(range(72, 80)), tuple(range(2, 19)), tuple(range(80, 96)),
          (0, 1), tuple(range(64, 72)), 0x40)  # fmt: skip
ISAS = (X86, ARM)


@dataclass(frozen=True)
class Spot:
    """A place of a value on one ISA, as the record has it."""

    kind: int
    register: int = 0
    offset: int = 0


@dataclass
class Value:
    """A live value. `spots`: by ISA, the first and its duplicates. `constant`: what it must be, if an ISA says so."""

    size: int
    variable: bool = False
    pointer: bool = False
    temporary_of: "Value | None" = None
    alias: "Value | None" = None
    constant: int | None = None
    spots: dict[str, list[Spot]] = field(default_factory=dict)


@dataclass
class Made:
    """A value that one ISA has alone: records, and what they make, or which address from the frame pointer."""

    spot: Spot
    size: int
    records: list[bytes]
    result: int = 0
    of_frame: bool = False


@dataclass
class Site:
    """A call. A `leaf` is only ever the innermost, and has values in registers that calls do not keep."""

    number: int
    function: "Function"
    leaf: bool
    addresses: dict[str, int] = field(default_factory=dict)
    values: list[Value] = field(default_factory=list)
    made: dict[str, list[Made]] = field(default_factory=dict)


@dataclass
class Function:
    address: dict[str, int]
    saved: dict[str, list[tuple[int, int]]]  #: register, and where, from the frame pointer
    size: dict[str, int] = field(default_factory=dict)
    sites: list[Site] = field(default_factory=list)


class _Frame:
    """Places that are still free in a function's frame on one ISA, for one call."""

    def __init__(self, draw: random.Random, isa: Isa, function: Function, site: Site) -> None:
        self.draw, self.isa, self.site = draw, isa, site
        self.below = min(
            (at for _, at in function.saved[isa.name]), default=-8
        )  # a variable that ends at the frame pointer: its end is meant
        saved = [register for register, _ in function.saved[isa.name]]
        self.registers = [one for one in saved if one < 64] + (list(isa.scratch) if site.leaf else [])
        self.vectors = [one for one in saved if one >= 64]
        self.wide = list(isa.scratch_vectors) if site.leaf else []
        self.incoming = [16 + 8 * slot for slot in range(OUTGOING // 8)] if site.number < 2**63 else []
        self.relative: list[tuple[Value | Made, int]] = []
        for pool in (self.registers, self.vectors, self.wide, self.incoming):
            draw.shuffle(pool)

    def memory(self, size: int, align: int = 8) -> int:
        """Where, from the frame pointer."""
        self.below -= size + self.draw.choice((0, 0, 8))
        self.below -= self.below % align
        return self.below

    def spot(self, size: int) -> Spot:
        draw = self.draw
        kind = draw.choice(("register", "vector", "incoming", "memory", "memory"))
        if kind == "register" and self.registers and size <= 8:
            return Spot(REGISTER, self.registers.pop())
        if kind == "vector" and self.vectors and size in (4, 8):
            return Spot(REGISTER, self.vectors.pop())
        if kind == "vector" and self.wide:
            return Spot(REGISTER, self.wide.pop())
        if kind == "incoming" and self.incoming and size <= 8:
            return Spot(INDIRECT, self.isa.frame, self.incoming.pop())
        return Spot(INDIRECT, self.isa.frame, self.memory(size))


class Program:
    """`functions` with calls, and three that start threads."""

    def __init__(self, seed: int, functions: int = 6) -> None:
        draw = self.draw = random.Random(seed)
        self.functions = [self._function(number) for number in range(functions + 3)]
        number = draw.randrange(1, 1000)
        for index, function in enumerate(self.functions):
            outermost = index >= functions
            for which in range(1 if outermost else draw.randint(1, 3)):
                site = Site(2**64 - 3 + index - functions if outermost else number, function, which == 2)
                number += draw.randint(1, 3)
                site.addresses = {isa.name: function.address[isa.name] + isa.step * (which + 1) for isa in ISAS}
                function.sites.append(site)
                self._fill(site)
            self._settle(function)
        self.sites = [site for function in self.functions for site in function.sites]

    def _function(self, number: int) -> Function:
        draw = self.draw
        saved = {}
        for isa in ISAS:
            kept = draw.sample(isa.kept + isa.kept_vectors, draw.randint(0, len(isa.kept)))
            saved[isa.name] = [(register, -8 * (place + 1)) for place, register in enumerate(kept)]
        return Function({isa.name: TEXT + 0x1000 * number for isa in ISAS}, saved)

    def _fill(self, site: Site) -> None:
        draw = self.draw
        frames = {isa.name: _Frame(draw, isa, site.function, site) for isa in ISAS}
        for _ in range(draw.randint(0, 3)):
            site.values.append(self._variable(frames))
        variables = list(site.values)
        for _ in range(draw.randint(0, 6)):
            site.values.append(self._scalar(frames))
        if variables and draw.random() < 0.5:
            whole = draw.choice(variables)
            site.values.append(Value(min(8, whole.size), variable=True, alias=whole, spots=whole.spots))
        if variables and draw.random() < 0.3:
            site.values.append(self._temporary(frames, draw.choice(variables)))
        draw.shuffle(site.values)
        for isa in ISAS:
            site.made[isa.name] = list(self._made(frames[isa.name])) if draw.random() < 0.5 else []
        for name, frame in frames.items():
            site.function.size[name] = max(site.function.size.get(name, 0), 16 - frame.below)

    def _settle(self, function: Function) -> None:
        for name in function.size:
            size = function.size[name] + OUTGOING + self.draw.choice((0, 16, 64))
            function.size[name] = size + -size % 16

    def _variable(self, frames: dict[str, _Frame]) -> Value:
        size = self.draw.choice((1, 4, 8, 8, 16, 24, 40, 100, 256))
        value = Value(size, variable=True, pointer=size == 8 and self.draw.random() < 0.5)
        for name, frame in frames.items():
            align = 16 if size >= 16 else 8
            value.spots[name] = [Spot(DIRECT, frame.isa.frame, frame.memory(size, align))]
        return value

    def _scalar(self, frames: dict[str, _Frame]) -> Value:
        draw = self.draw
        value = Value(draw.choice((1, 2, 4, 8, 8, 8, 8, 16)))
        value.pointer = value.size == 8 and draw.random() < 0.5
        if value.size == 8 and draw.random() < 0.3:
            value.pointer = False
            index = draw.randrange(len(POOL))
            small = draw.random() < 0.5
            value.constant = draw.randrange(-100, 2**31) if small else POOL[index]
            spot = Spot(CONSTANT, 0, value.constant) if small else Spot(INDEX, 0, index)
            fixed = draw.choice((("x86-64",), ("aarch64",), ("x86-64", "aarch64")))
            value.spots = {name: [spot] for name in fixed}
        for name, frame in frames.items():
            if name not in value.spots:
                value.spots[name] = [frame.spot(value.size) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
        return value

    def _temporary(self, frames: dict[str, _Frame], variable: Value) -> Value:
        """The address of a variable, which the compiler of one ISA or of both has made for the record."""
        value = Value(8, pointer=True, temporary_of=variable)
        for name in self.draw.choice((("x86-64",), ("aarch64",), ("x86-64", "aarch64"))):
            value.spots[name] = [Spot(DIRECT, frames[name].isa.frame, variable.spots[name][0].offset)]
        for name, frame in frames.items():
            if name not in value.spots:
                value.spots[name] = [frame.spot(8)]
        return value

    def _made(self, frame: _Frame) -> Iterator[Made]:
        draw, isa = self.draw, frame.isa
        for _ in range(draw.randint(1, 3)):
            spot = frame.spot(8)
            start, other = draw.getrandbits(40), draw.getrandbits(12) | 1
            match draw.randrange(6):
                case 0:  # an address's upper part
                    steps = [(0, start), (8, ~0xFFF)]
                    yield Made(spot, 8, [_arch(spot, 8, CONSTANT, how, operand, True) for how, operand in steps],
                               start & ~0xFFF)  # fmt: skip
                case 1:
                    steps = [(0, start), (1, other), (2, 3), (3, 5), (4, other), (5, 4), (6, 2), (7, 1)]
                    result = (((start + other - 3) * 5 & 2**64 - 1) // other << 4) >> 2 >> 1
                    yield Made(spot, 8, [_arch(spot, 8, CONSTANT, how, operand, True) for how, operand in steps],
                               result)  # fmt: skip
                case 2:
                    yield Made(spot, 8, [_arch(spot, 8, CONSTANT, 0, -other, False)], -other & 2**64 - 1)
                case 3:
                    which = draw.randrange(2)
                    word = struct.unpack_from("<Q", CONSTANTS, 8 * which)[0]
                    yield Made(spot, 8, [_arch(spot, 8, CONSTANT, 10, CONSTANTS_AT + 8 * which, False)], word)
                case 4:
                    at = -8 * draw.randint(1, 4)
                    yield Made(spot, 8, [_arch(spot, 8, INDIRECT, 0, at, False, isa.frame)], at, of_frame=True)
                case _:
                    spare = frame.spot(8)
                    first = _arch(spare, 8, CONSTANT, 0, start, False)
                    how = (spare.kind if spare.kind == REGISTER else DIRECT, spare.offset, spare.register)
                    if spare.offset > 0:  # a place in the caller's frame is not read
                        continue
                    yield Made(spare, 8, [first], start)
                    yield Made(spot, 8, [_arch(spot, 8, how[0], 0, how[1], False, how[2])], start)


def _arch(spot: Spot, size: int, operand: int, operation: int, value: int, generated: bool, register: int = 0) -> bytes:
    how = operation << 4 | generated << 3 | operand
    return struct.pack("<BBHiBBHq", spot.kind << 4, size, spot.register, spot.offset, how, size, register, value)
