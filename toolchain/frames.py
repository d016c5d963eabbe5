"""Sizes of frames, from the stack maps that the pass leaves in each function, and what makes them equal.

A frame's size decides where the frames that it calls lie, so it must be equal on all ISAs. What differs is room that
code generation takes for itself, dead across every stop: the smaller one gets as much more.
"""

import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

from toolchain.tools import AARCH64, X86_64, Isa, run

#: What the stack map counts at and above the frame pointer: the saved one, and on aarch64 the return address.
_ABOVE = {X86_64: 8, AARCH64: 16}
_HEAD = struct.Struct("<BxxxIII")
_FUNCTION = struct.Struct("<QQQ")
_RECORD = struct.Struct("<QIHH")
_LOCATION = 12


def frame_sizes(isa: Isa, obj: Path) -> dict[int, int]:
    """Bytes below the frame pointer, by the number that the pass gave the function."""
    dumped = obj.with_suffix(".stackmaps")
    run("frame sizes", "llvm-objcopy", f"--dump-section=.llvm_stackmaps={dumped}", obj, "/dev/null")
    return {number: size - _ABOVE[isa] for number, size in _records(dumped.read_bytes())}


def _records(data: bytes) -> Iterator[tuple[int, int]]:
    """Number and size of each function. Format: LLVM's StackMaps documentation, version 3."""
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
        at = _aligned(at + _RECORD.size + _LOCATION * locations)
        _, live_outs = struct.unpack_from("<HH", data, at)
        at = _aligned(at + 4 + 4 * live_outs)
        yield number, size


def _aligned(at: int) -> int:
    return -(-at // 8) * 8


def add_pads(sizes: Mapping[Isa, Mapping[int, int]], pads: Mapping[Isa, dict[int, int]]) -> bool:
    """Add to `pads` what each ISA's frames lack of the larger one's; whether any did."""
    lacked = False
    for number in sizes[X86_64]:
        larger = max(of[number] for of in sizes.values())
        for isa, of in sizes.items():
            if of[number] < larger:
                pads[isa][number] = pads[isa].get(number, 0) + larger - of[number]
                lacked = True
    return lacked
