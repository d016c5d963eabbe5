"""Numbers of Arm's manual."""

import pytest

from tests.transform.isa.pairs import pair
from transform.images.proto import task_pb2
from transform.isa import aarch64, x86_64
from transform.isa.thread import FloatingPoint, Place, Rounding, Thread

pytestmark = pytest.mark.t0

PAIR = pair()


def test_the_known_numbers_of_floating_point() -> None:
    """Round up, flush to zero, and an inexact result, as Intel's and Arm's manuals number them."""
    state = FloatingPoint(rounding=Rounding.UP, flush=True, raised=1 << 4)
    thread = Thread(Place.AFTER_CALL, 0, 16, 16, 0, 0, floating_point=state)
    x86, arm = task_pb2.Core(), task_pb2.Core()
    x86_64.write_thread(x86, thread, PAIR.source)
    aarch64.write_thread(arm, thread, PAIR.target)
    assert x86.thread_info.fpregs.mxcsr == 0x1F80 | 2 << 13 | 1 << 15 | 1 << 5
    assert (arm.ti_aarch64.fpsimd.fpcr, arm.ti_aarch64.fpsimd.fpsr) == (1 << 22 | 1 << 24, 1 << 4)
