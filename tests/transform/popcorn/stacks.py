"""Stacks of a made-up program: what is in each frame, and from that memory and registers of a thread on each ISA.

A stack is made on an ISA as the processor would have made it, from the outermost function inwards: each saves registers
of its caller, and then puts its own values into them. `dead`: what no record names is filled with it, so that nothing
of it must be found in what a transform makes.
"""

import random
import struct
from dataclasses import dataclass, field

from tests.transform.popcorn.programs import ARM, DIRECT, INDIRECT, REGISTER, Isa, Program, Site, Value
from tests.transform.synthetic import BytesStore, extent, mm, pagemap, vma
from transform.memory import Memory

BASE = 0x7FFE00000000
SPACE = 1 << 18
"""Bytes below the base that are mapped and in the dump."""
HEAP = 0x10000000


@dataclass(frozen=True)
class Target:
    """What a word points to: a byte of a variable of a frame, or (None) the frame pointer of it."""

    stack: "AbstractStack"
    frame: int
    variable: Value | None
    offset: int = 0


Word = int | Target


@dataclass
class Activation:
    """A call that is being made. Values by their identity; of variables the words, and the bytes behind the last."""

    site: Site
    scalars: dict[int, Word] = field(default_factory=dict)
    variables: dict[int, tuple[list[Word], bytes]] = field(default_factory=dict)


@dataclass
class AbstractStack:
    """A thread's, the innermost frame first."""

    base: int
    frames: list[Activation] = field(default_factory=list)
    result: Word = 0
    second: Word = 0
    vectors: tuple[int, ...] = ()


@dataclass
class Real:
    """A thread on one ISA."""

    low: int
    contents: bytes
    pc: int
    registers: dict[int, int]


def invent(draw: random.Random, program: Program, depths: list[int]) -> list[AbstractStack]:
    """The stacks of as many threads, which may point into each other."""
    stacks = []
    for number, depth in enumerate(depths):
        stack = AbstractStack(BASE - number * 4 * SPACE)
        inner = [site for site in program.sites if site.number < 2**63 and not site.leaf]
        sites = [draw.choice([site for site in program.sites if site.number < 2**63])]
        sites += [draw.choice(inner) for _ in range(depth - 2)]
        sites.append(draw.choice([site for site in program.sites if site.number > 2**63]))
        stack.frames = [Activation(site) for site in sites[-depth:]]
        stacks.append(stack)
    for stack in stacks:
        _fill(draw, stack, stacks)
    return stacks


def _fill(draw: random.Random, stack: AbstractStack, stacks: list[AbstractStack]) -> None:
    for depth, frame in enumerate(stack.frames):
        for value in frame.site.values:
            if value.variable and value.alias is None:
                words = [_word(draw, stack, depth, stacks) for _ in range(value.size // 8)]
                frame.variables[id(value)] = words, draw.randbytes(value.size % 8)
            elif value.temporary_of is not None:
                frame.scalars[id(value)] = Target(stack, depth, value.temporary_of)
            elif value.constant is not None:
                frame.scalars[id(value)] = value.constant & 2**64 - 1
            elif value.size == 8:
                frame.scalars[id(value)] = _word(draw, stack, depth, stacks)
            elif not value.variable:
                frame.scalars[id(value)] = draw.getrandbits(8 * value.size)
    stack.result, stack.second = (_word(draw, stack, 0, stacks) for _ in range(2))
    stack.vectors = tuple(draw.getrandbits(128) for _ in range(8))


def _word(draw: random.Random, stack: AbstractStack, depth: int, stacks: list[AbstractStack]) -> Word:
    """A number, an address on the heap, or one on a stack: of its own frame's or a caller's, or of another thread's."""
    chosen = draw.random()
    if chosen < 0.4:
        return draw.choice((0, draw.getrandbits(64) | 1 << 63, HEAP + draw.getrandbits(20)))
    where = stack if chosen < 0.9 else draw.choice(stacks)
    first = depth if where is stack else 0
    frame = min(first + draw.choice((0, 0, 1, 2, 9)), len(where.frames) - 1)
    variables = [value for value in where.frames[frame].site.values if value.variable and value.alias is None]
    if not variables or draw.random() < 0.05:
        return Target(where, frame, None)
    variable = draw.choice(variables)
    behind = draw.random() < 0.1 and _ends_alone(variable, variables)
    return Target(where, frame, variable, variable.size if behind else draw.randrange(variable.size))


def _ends_alone(variable: Value, variables: list[Value]) -> bool:
    """Whether no other variable begins where this one ends, on either ISA."""
    ends = {(name, spots[0].offset + variable.size) for name, spots in variable.spots.items()}
    starts = {(name, spots[0].offset) for value in variables for name, spots in value.spots.items()}
    return not ends & starts


def realise(stack: AbstractStack, isa: Isa, dead: random.Random | None = None) -> Real:
    """The thread on that ISA."""
    bases = cfas(stack, isa)
    low = bases[0] - stack.frames[0].site.function.size[isa.name]
    contents = bytearray(dead.randbytes(stack.base - low) if dead else stack.base - low)
    kept = isa.kept + isa.kept_vectors
    registers = {register: dead.getrandbits(63) if dead else 0 for register in kept}
    for depth in reversed(range(len(stack.frames))):
        _call(stack, depth, isa, contents, registers, low, dead)
    site = stack.frames[0].site
    registers |= {isa.frame: bases[0] - 16, isa.stack: low}
    if isa is ARM:
        registers[isa.link] = site.addresses[isa.name]
    registers |= dict(zip(isa.results, (_real(word, isa) for word in (stack.result, stack.second)), strict=True))
    registers |= dict(zip(isa.vector_results, stack.vectors, strict=True))
    return Real(low, bytes(contents), site.addresses[isa.name], registers)


def _call(
    stack: AbstractStack, depth: int, isa: Isa, contents: bytearray, registers: dict[int, int], low: int,
    dead: random.Random | None,
) -> None:  # fmt: skip
    frame, function = stack.frames[depth], stack.frames[depth].site.function
    bases = cfas(stack, isa)
    fp = bases[depth] - 16 - low
    outermost = depth == len(stack.frames) - 1
    saved = function.saved[isa.name]
    if not outermost or dead:
        above = (bases[depth + 1] - 16, stack.frames[depth + 1].site.addresses[isa.name]) if not outermost else (1, 2)
        struct.pack_into("<QQ", contents, fp, *above)
    for register, at in saved:
        struct.pack_into("<Q", contents, fp + at, registers[register] & 2**64 - 1)
        registers[register] = dead.getrandbits(63) if dead else 0
    for value in frame.site.values:
        _put(value, frame, isa, contents, registers, fp, dead)
    for made in frame.site.made[isa.name]:
        result = bases[depth] - 16 + made.result if made.of_frame else made.result
        _write(made.spot.kind, made.spot.register, made.spot.offset, 8, result, contents, registers, fp)


def _put(
    value: Value, frame: Activation, isa: Isa, contents: bytearray, registers: dict[int, int], fp: int,
    dead: random.Random | None,
) -> None:  # fmt: skip
    if value.variable:
        if value.alias is None:
            words, rest = frame.variables[id(value)]
            at = fp + value.spots[isa.name][0].offset
            data = b"".join(struct.pack("<Q", _real(word, isa)) for word in words) + rest
            contents[at : at + len(data)] = data
        return
    for spot in value.spots[isa.name]:
        if spot.kind in (REGISTER, INDIRECT):
            word = _real(frame.scalars[id(value)], isa)
            if dead and spot.kind == REGISTER and value.size < 8:
                word |= dead.getrandbits(64) << 8 * value.size & 2**64 - 1
            _write(spot.kind, spot.register, spot.offset, value.size, word, contents, registers, fp)
        assert spot.kind != DIRECT or value.temporary_of is not None


def _write(
    kind: int, register: int, offset: int, size: int, word: int, contents: bytearray, registers: dict[int, int], fp: int
) -> None:
    if kind == REGISTER:
        registers[register] = word
    else:
        contents[fp + offset : fp + offset + size] = word.to_bytes(size, "little")


def _real(word: Word, isa: Isa) -> int:
    if isinstance(word, int):
        return word
    fp = cfas(word.stack, isa)[word.frame] - 16
    return fp if word.variable is None else fp + word.variable.spots[isa.name][0].offset + word.offset


def cfas(stack: AbstractStack, isa: Isa) -> list[int]:
    """Where each frame ends."""
    known: dict[str, list[int]] = stack.__dict__.setdefault("cfas", {})
    if isa.name not in known:
        at, found = stack.base, []
        for frame in reversed(stack.frames):
            found.append(at)
            at -= frame.site.function.size[isa.name]
        known[isa.name] = found[::-1]
    return known[isa.name]


def memory_of(reals: list[tuple[AbstractStack, Real]], space: int = SPACE) -> Memory:
    """A dump in which the threads' stacks are."""
    ordered = sorted(reals, key=lambda one: one[0].base)
    pages = b"".join(real.contents.rjust(space, b"\xee") for _, real in ordered)
    starts = [stack.base - space for stack, _ in ordered]
    images = {
        "mm-1.img": mm(*(vma(start, start + space) for start in starts)),
        "pagemap-1.img": pagemap(1, *(extent(start, space // 4096) for start in starts)),
    }
    return Memory(1, images, BytesStore(pages_1=pages))
