"""Where frames and their variables lie, from the stack maps that the pass leaves in each function, and what makes them
equal on all ISAs.

A frame's size decides where the frames that it calls lie. What differs is room that code generation takes for itself,
dead across every stop: the smaller frame gets as much more. aarch64 takes some right below the frame pointer, too, in
frames of some size: there the other gets as much, so that variables are equally far below it.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from toolchain.tools import AARCH64, X86_64, Isa, ToolError, run

#: What the stack map counts at and above the frame pointer: the saved one, and on aarch64 the return address.
_ABOVE = {X86_64: 8, AARCH64: 16}
_HEAD = struct.Struct("<BxxxIII")
_FUNCTION = struct.Struct("<QQQ")
_RECORD = struct.Struct("<QIHH")
_LOCATION = struct.Struct("<BxHHxxi")
_DIRECT = 2
#: DWARF's numbers of frame and stack pointer.
_FRAME_POINTER, _STACK_POINTER = {X86_64: 6, AARCH64: 29}, {X86_64: 7, AARCH64: 31}


@dataclass(frozen=True)
class Frame:
    """`size`: bytes below the frame pointer. `depth`: bytes from it down to the lowest of the object that has all
    variables."""

    size: int
    depth: int


@dataclass(frozen=True)
class Pad:
    """Bytes that a frame's object gets: below its variables, and above."""

    below: int = 0
    above: int = 0


def frames_of(isa: Isa, obj: Path) -> dict[int, Frame]:
    """The frames by the number that the pass gave the function. ToolError."""
    dumped = obj.with_suffix(".stackmaps")
    run("frame sizes", "llvm-objcopy", f"--dump-section=.llvm_stackmaps={dumped}", obj, "/dev/null")
    return {number: _frame(isa, size, place) for number, size, place in _records(dumped.read_bytes())}


def _frame(isa: Isa, total: int, place: tuple[int, int, int]) -> Frame:
    size, (kind, register, offset) = total - _ABOVE[isa], place
    if kind != _DIRECT or register not in (_FRAME_POINTER[isa], _STACK_POINTER[isa]):
        raise ToolError(f"frames: one for {isa.name} has its variables at register {register}, {kind}")
    return Frame(size, -offset if register == _FRAME_POINTER[isa] else size - offset)


def _records(data: bytes) -> Iterator[tuple[int, int, tuple[int, int, int]]]:
    """Number and size of each function, and kind, register and offset of its object. Format: LLVM's StackMaps
    documentation, version 3."""
    _, functions, constants, _ = _HEAD.unpack_from(data)
    at = _HEAD.size
    sizes = []
    for _ in range(functions):
        _, size, records = _FUNCTION.unpack_from(data, at)
        sizes += [size] * records
        at += _FUNCTION.size
    at += 8 * constants
    for size in sizes:
        number, _, _, locations = _RECORD.unpack_from(data, at)
        kind, _, register, offset = _LOCATION.unpack_from(data, at + _RECORD.size)
        at = _aligned(at + _RECORD.size + _LOCATION.size * locations)
        _, live_outs = struct.unpack_from("<HH", data, at)
        at = _aligned(at + 4 + 4 * live_outs)
        yield number, size, (kind, register, offset)


def _aligned(at: int) -> int:
    return -(-at // 8) * 8


def add_pads(frames: Mapping[Isa, Mapping[int, Frame]], pads: Mapping[Isa, dict[int, Pad]]) -> bool:
    """Add to `pads` what each ISA's frames lack of the other's; whether any did. `frames`: as they are with `pads`."""
    lacked = False
    for number in frames[X86_64]:
        had = {isa: pads[isa].get(number, Pad()) for isa in frames}
        above = _lacking({isa: of[number].depth - had[isa].below for isa, of in frames.items()})
        below = _lacking({isa: of[number].size + above[isa] for isa, of in frames.items()})
        for isa in frames:
            if above[isa] or below[isa]:
                pads[isa][number] = Pad(had[isa].below + below[isa], had[isa].above + above[isa])
                lacked = True
    return lacked


def _lacking(sizes: Mapping[Isa, int]) -> dict[Isa, int]:
    return {isa: max(sizes.values()) - size for isa, size in sizes.items()}
