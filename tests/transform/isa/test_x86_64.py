"""What a core image of x86-64 may not say."""

import pytest

from tests.transform.isa.pairs import STUB, TEXT, pair
from transform.errors import TransformError
from transform.images.proto import task_pb2
from transform.isa import x86_64
from transform.isa.thread import Place, Thread

pytestmark = pytest.mark.t0

PAIR = pair()


@pytest.mark.parametrize("address", [0, TEXT, TEXT + 6, STUB, STUB + 6, STUB + 8])
def test_a_thread_that_stands_elsewhere_is_refused(address: int) -> None:
    core = task_pb2.Core()
    x86_64.write_thread(core, Thread(Place.AFTER_CALL, 0, 16, 16, 0, 0), PAIR.source)
    core.thread_info.gpregs.ip = address
    with pytest.raises(TransformError, match=f"thread 7: stands at {address:#x}, where it cannot change ISA"):
        x86_64.read_thread(core, PAIR.source, lambda _: 0, "thread 7")


def test_32_bit_code_is_refused() -> None:
    core = task_pb2.Core()
    x86_64.write_thread(core, Thread(Place.AFTER_CALL, 0, 16, 16, 0, 0), PAIR.source)
    core.thread_info.gpregs.cs = 0x23
    with pytest.raises(TransformError, match="32-bit"):
        x86_64.read_thread(core, PAIR.source, lambda _: 0, "thread 7")
