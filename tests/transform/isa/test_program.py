"""The threads of one process of a unified pair, from one ISA to the other."""

import struct

import pytest

from tests.transform.isa.pairs import pair
from tests.transform.isa.test_change import core
from tests.transform.isa.test_round_trip import SIZE, STACK, grown
from tests.transform.synthetic import BytesStore, extent, image, mm, pagemap, vma
from transform.errors import TransformError
from transform.images.codec import Image, decode
from transform.images.proto import task_pb2
from transform.isa import aarch64, x86_64
from transform.isa.program import UnifiedProgram
from transform.isa.thread import Place
from transform.memory import Memory

pytestmark = pytest.mark.t0


def process(*stacks: bytes) -> tuple[Memory, BytesStore]:
    """A process, and the store that has its stacks."""
    store = BytesStore(pages_1=b"".join(stacks))
    size = len(stacks) * SIZE
    images = {
        "mm-5.img": mm(vma(STACK, STACK + size), auxv=(6, 4096)),
        "pagemap-5.img": pagemap(1, extent(STACK, size // 4096)),
    }
    return Memory(5, images, store), store


def test_each_thread_is_changed_and_one_that_has_ended_is_left() -> None:
    program = UnifiedProgram(pair(), "aarch64")
    (first, stack), (second, other) = (
        grown(number, Place.AFTER_CALL, 3 + number, [(64, 8), (160, 9)]) for number in range(2)
    )
    memory, store = process(stack, other)
    ended = image("core", task_pb2.Core(mtype=x86_64.MACHINE))
    cores = {
        5: decode("core-5.img", core(first)),
        6: decode("core-6.img", core(second)),
        7: decode("core-7.img", ended),
    }
    program.change_threads(cores, memory)
    for number, thread in enumerate((first, second)):
        registers = cores[5 + number].messages(task_pb2.Core)[0].ti_aarch64.gpregs
        assert (registers.pc, registers.sp) == (program.target.by_id[3 + number].address, thread.stack)
        at = thread.frame + 8 - STACK
        assert struct.unpack_from("<Q", store.images["pages-1.img"], at)[0] == program.target.by_id[8].address
    assert cores[7].encode() == ended


def test_a_thread_that_stands_elsewhere_is_named_and_nothing_is_written() -> None:
    program = UnifiedProgram(pair("aarch64", "x86-64"), "x86-64")
    thread, stack = grown(0, Place.AFTER_CALL, 3, [(64, 8)])
    memory, store = process(stack)
    raw = decode("core-6.img", core(thread, "aarch64"))
    assert raw.messages(task_pb2.Core)[0].mtype == aarch64.MACHINE
    raw = moved(raw)
    with pytest.raises(TransformError, match=r"thread 6: stands at 0x123, where it cannot change ISA"):
        program.change_threads({6: raw}, memory)
    assert bytes(store.images["pages-1.img"]) == stack


def moved(raw: Image) -> Image:
    """The same thread at an address that is none of the program's."""
    (made,) = raw.messages(task_pb2.Core)
    made.ti_aarch64.gpregs.pc = 0x123
    return decode(raw.name, image("core", made))
