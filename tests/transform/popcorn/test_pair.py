"""Random stacks of random programs, from each ISA to the other: what is made is what a thread there would have."""

import os
import random
import re
import sys
from pathlib import Path
from types import FrameType

import pytest

from tests.transform.popcorn.encoding import executable
from tests.transform.popcorn.programs import ARM, CONSTANTS, CONSTANTS_AT, X86, Isa, Program
from tests.transform.popcorn.stacks import AbstractStack, Real, invent, memory_of, realise
from transform.errors import TransformError
from transform.popcorn.machine import MACHINES
from transform.popcorn.pair import PopcornPair
from transform.popcorn.places import Side
from transform.popcorn.rewrite import Rewritten
from transform.popcorn.sections import read_call_sites
from transform.popcorn.unwind import Registers

pytestmark = pytest.mark.t0
STACKS = int(os.environ.get("IMGPROXY_STACKS", "200"))
SEED = int(os.environ.get("IMGPROXY_SEED", "1"))
OF_EACH_PROGRAM = 20


def load(address: int, length: int) -> bytes:
    at = address - CONSTANTS_AT
    assert 0 <= at <= len(CONSTANTS) - length
    return CONSTANTS[at : at + length]


def sides(program: Program, directory: Path) -> dict[str, Side]:
    made = {}
    for isa in (X86, ARM):
        path = directory / f"prog_{isa.name}"
        path.write_bytes(executable(program, isa))
        sites = read_call_sites(path)
        assert sites is not None
        made[isa.name] = Side(sites, MACHINES[isa.name])
    return made


def translated(pair: PopcornPair, stacks: list[AbstractStack], reals: list[Real]) -> list[Real]:
    threads = {f"thread {number}": Registers(real.pc, real.registers) for number, real in enumerate(reals)}
    made = pair.translate(memory_of(list(zip(stacks, reals, strict=True))), threads, load)
    results = (made[who] for who in threads)
    return [Real(one.low, one.contents, one.registers.pc, dict(one.registers.values)) for one in results]


def same(made: Real, wanted: Real) -> bool:
    """Registers that hold nothing may be left out."""
    registers = {number: value for number, value in made.registers.items() if value}
    return (made.low, made.contents, made.pc, registers) == (
        wanted.low, wanted.contents, wanted.pc, {number: value for number, value in wanted.registers.items() if value}
    )  # fmt: skip


def directions() -> list[tuple[Isa, Isa]]:
    return [(X86, ARM), (ARM, X86)]


def test_random_stacks(tmp_path: Path) -> None:
    """`IMGPROXY_STACKS` of them: to the other ISA from a stack full of remains, and there and back again."""
    draw = random.Random(SEED)
    wrong = 0
    for number in range(STACKS):
        if number % OF_EACH_PROGRAM == 0:
            both = sides(program := Program(draw.getrandbits(32)), tmp_path)
            pairs = {one.name: PopcornPair(both[one.name], both[other.name]) for one, other in directions()}
        stacks = invent(draw, program, [draw.randint(1, 12) for _ in range(draw.choice((1, 1, 1, 2, 4)))])
        clean = {isa.name: [realise(stack, isa) for stack in stacks] for isa in (X86, ARM)}
        for source, target in directions():
            there = translated(pairs[source.name], stacks, [realise(stack, source, draw) for stack in stacks])
            back = translated(pairs[target.name], stacks, there)
            results = [*zip(there, clean[target.name], strict=True), *zip(back, clean[source.name], strict=True)]
            wrong += any(not same(made, wanted) for made, wanted in results)
    assert wrong == 0


def deep(frames: int, directory: Path) -> tuple[Rewritten, Real, int]:
    """A thread of that many frames changed to aarch64, what is wanted, and how many functions were called for it."""
    program = Program(SEED + 1)
    both = sides(program, directory)
    (stack,) = invent(random.Random(SEED), program, [frames])
    real, pair = realise(stack, X86), PopcornPair(both["x86-64"], both["aarch64"])
    memory, calls = memory_of([(stack, real)], 1 << 23), 0

    def count(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        made = pair.translate(memory, {"thread": Registers(real.pc, real.registers)}, load)["thread"]
    finally:
        sys.setprofile(None)
    return made, realise(stack, ARM), calls


def test_deep_stacks(tmp_path: Path) -> None:
    """10,000 frames; and what is done grows with them, and no faster."""
    _, _, fewer = deep(1000, tmp_path)
    made, wanted, calls = deep(10_000, tmp_path)
    assert made.contents == wanted.contents
    assert calls < 10.5 * fewer


def test_threads_point_into_the_live_part_of_stacks_only(tmp_path: Path) -> None:
    """A word below every stack pointer is no pointer, whatever was there."""
    program = Program(SEED + 2)
    pair = PopcornPair(*(sides(program, tmp_path)[isa.name] for isa in (X86, ARM)))
    (stack,) = invent(random.Random(SEED), program, [5])
    real = realise(stack, X86)
    real.registers[0] = real.low - 8
    made = pair.translate(memory_of([(stack, real)]), {"thread": Registers(real.pc, real.registers)}, load)
    assert made["thread"].registers.values[0] == real.low - 8


def test_damaged_stacks_are_refused_or_read_as_they_are(tmp_path: Path) -> None:
    """A bit anywhere in a stack, a stack pointer or a frame pointer: nothing breaks, and most is seen."""
    draw = random.Random(SEED)
    program = Program(SEED + 3)
    pair = PopcornPair(*(sides(program, tmp_path)[isa.name] for isa in (X86, ARM)))
    (stack,) = invent(draw, program, [6])
    refused = 0
    for number in range(150):
        real = realise(stack, X86)
        at = draw.randrange(len(real.contents))
        damaged = bytearray(real.contents)
        damaged[at] ^= 1 << draw.randrange(8)
        if number % 3 == 0:
            register = draw.choice((X86.frame, X86.stack))
            real.registers[register] ^= 1 << draw.randrange(47)
        thread = Registers(real.pc, real.registers)
        try:
            pair.translate(memory_of([(stack, Real(real.low, bytes(damaged), 0, {}))]), {"thread": thread}, load)
        except TransformError as error:
            assert re.match("thread: |call site|memory of task", str(error))
            refused += 1
    assert refused >= 50
