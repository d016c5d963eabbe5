"""Frames of a thread, and chains of them that do not hold."""

import struct

import pytest

from tests.transform.popcorn.tables import side, site
from tests.transform.synthetic import BytesStore, extent, mm, pagemap, vma
from transform.errors import AddressError, TransformError
from transform.memory import Memory
from transform.popcorn.sections import Saved
from transform.popcorn.unwind import Registers, walk

pytestmark = pytest.mark.t0
STACK, PAGE = 0x7FFF0000, 4096
SITES = [
    site(1, 64, address=0x1008, saved=[Saved(3, -8)]),
    site(2, 48, address=0x2008),
    site(3, 0x30 + 8, address=0x3008),
    site(2**64 - 2, 32, address=0x4008),
]
SIDE = side("x86-64", SITES)
LOW = STACK + 0x100
FP = LOW + 64 - 16
"""Of the innermost; the second frame's is 48 bytes above, the third's, the outermost, 32 above that."""


def memory(returns: int = 0x2008, above: int = FP + 48, last: int = 0x4008) -> Memory:
    stack = bytearray(PAGE)
    struct.pack_into("<QQQ", stack, FP - 8 - STACK, 0xB0B, above, returns)
    struct.pack_into("<QQ", stack, FP + 48 - STACK, FP + 80, last)
    images = {"mm-1.img": mm(vma(STACK, STACK + PAGE)), "pagemap-1.img": pagemap(1, extent(STACK, 1))}
    return Memory(1, images, BytesStore(pages_1=bytes(stack)))


def registers(pc: int = 0x1008, fp: int = FP, sp: int = LOW) -> Registers:
    return Registers(pc, {0: 7, 3: 0xABC, 12: 5, 6: fp, 7: sp})


def test_frames_with_what_the_inner_ones_have_saved() -> None:
    stack = walk(memory(), registers(), SIDE, "thread 9")
    assert [(frame.site.id, frame.cfa) for frame in stack.frames] == [
        (1, FP + 16),
        (2, FP + 64),
        (2**64 - 2, FP + 96),
    ]
    assert (stack.low, stack.base, len(stack.contents)) == (LOW, FP + 96, 64 + 48 + 32)
    assert [frame.registers.get(3) for frame in stack.frames] == [0xABC, 0xB0B, 0xB0B]
    assert [frame.registers.get(0) for frame in stack.frames] == [7, None, None]
    assert [frame.registers.get(12) for frame in stack.frames] == [5, 5, 5]


@pytest.mark.parametrize(
    ("thread", "held", "reason"),
    [
        (registers(pc=0x1009), memory(), "0x1009 is behind no call that prog_x86-64 has records of"),
        (registers(), memory(returns=0x2009), "0x2009 is behind no call"),
        (registers(), memory(returns=0x3008), "the function that calls at 0x3008 has no fixed size"),
        (registers(sp=LOW - 16), memory(), "the frame of the function that calls at 0x1008 is at"),
        (registers(fp=FP + 8), memory(), "which is no address of one"),
        (registers(), memory(above=FP + 64), "the frame of the function that calls at 0x2008 is at"),
        (registers(), memory(above=0), "its frames end at .*, before the function that starts a thread"),
        (registers(), memory(above=FP - 16), "has its caller's below"),
        (registers(), memory(last=0), "0x0 is behind no call"),
    ],
)
def test_a_chain_that_does_not_hold_is_refused(thread: Registers, held: Memory, reason: str) -> None:
    with pytest.raises(TransformError, match=f"^thread 9: .*{reason}"):
        walk(held, thread, SIDE, "thread 9")


def test_a_stack_that_is_not_mapped_is_refused() -> None:
    with pytest.raises(AddressError, match="not mapped"):
        walk(memory(above=STACK + PAGE + 32), registers(), SIDE, "thread 9")
