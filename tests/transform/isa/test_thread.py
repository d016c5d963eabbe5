"""A thread in the core images of both ISAs: what one writes it reads, and what the other one makes of it."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transform.isa.pairs import STUB, pair
from transform.images.proto import task_pb2
from transform.isa import aarch64, x86_64
from transform.isa.thread import VECTORS, FloatingPoint, Place, Rounding, Thread

pytestmark = pytest.mark.t0

PAIR = pair()
WORD = st.integers(0, 2**64 - 1)
STACK = st.integers(1, 2**43).map(lambda number: 16 * number)


@st.composite
def threads(draw: st.DrawFn) -> Thread:
    place = draw(st.sampled_from(Place))
    in_stub = place is not Place.AFTER_CALL
    before = place is Place.BEFORE_SYSCALL
    return Thread(
        place=place,
        site=0x80000000 if in_stub else draw(st.integers(0, 63)),
        frame=draw(STACK),
        stack=draw(STACK),
        thread_pointer=draw(WORD),
        clear_tid=draw(WORD),
        result=draw(WORD),
        second_result=draw(WORD),
        link=draw(WORD) if in_stub else 0,
        call=tuple(draw(st.lists(WORD, min_size=7, max_size=7))) if before else (),
        floating_point=FloatingPoint(
            rounding=draw(st.sampled_from(Rounding)),
            flush=draw(st.booleans()),
            raised=draw(st.integers(0, 255)) & 0x9F,
            vectors=tuple(draw(st.lists(st.integers(0, 2**128 - 1), min_size=VECTORS, max_size=VECTORS))),
        ),
    )


def through_x86(thread: Thread) -> Thread:
    core = task_pb2.Core()
    memory = x86_64.write_thread(core, thread, PAIR.source)
    assert core.IsInitialized() and core.mtype == task_pb2.Core.X86_64
    _as_the_stub_does(core, thread)
    return x86_64.read_thread(core, PAIR.source, lambda address: memory[address], "thread 1")


def _as_the_stub_does(core: task_pb2.Core, thread: Thread) -> None:
    """From its entry to the instruction."""
    registers = core.thread_info.gpregs
    if thread.place is Place.BEFORE_SYSCALL:
        assert registers.ip == STUB
        registers.ip = PAIR.source.by_id[thread.site].address
        registers.r10, registers.r8, registers.r9 = registers.di, registers.si, registers.dx


def through_aarch64(thread: Thread) -> Thread:
    core = task_pb2.Core()
    assert aarch64.write_thread(core, thread, PAIR.target) == {}
    assert core.IsInitialized() and core.mtype == task_pb2.Core.AARCH64
    if thread.place is Place.BEFORE_SYSCALL:
        assert core.ti_aarch64.gpregs.pc == STUB
        core.ti_aarch64.gpregs.pc = PAIR.target.by_id[thread.site].address
    return aarch64.read_thread(core, PAIR.target, "thread 1")


def as_seen(thread: Thread) -> Thread:
    """Without what means nothing where it stands."""
    if thread.place is Place.BEFORE_SYSCALL:
        return replace(thread, result=0, second_result=0)
    return replace(thread, call=())


@given(threads())
def test_a_thread_is_the_same_after_either(thread: Thread) -> None:
    assert as_seen(through_x86(thread)) == as_seen(thread)
    assert as_seen(through_aarch64(thread)) == as_seen(thread)
    assert as_seen(through_x86(through_aarch64(through_x86(thread)))) == as_seen(thread)
