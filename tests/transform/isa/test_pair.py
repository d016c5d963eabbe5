"""What an executable maps."""

import pytest

from tests.transform.isa.pairs import SEGMENTS, executable
from transform.errors import TransformError

pytestmark = pytest.mark.t0


def test_bytes_of_an_executable_are_found_by_address() -> None:
    made = executable("x86-64", 5)
    ((offset, start, _, _, _),) = SEGMENTS
    assert made.bytes_at(start, 6) == b"x86-64" and offset == 0x1000
    assert made.bytes_at(start + 0x2FFF, 4) == b"\x90\0\0\0"
    with pytest.raises(TransformError, match="has nothing at 0x1000"):
        made.bytes_at(0x1000, 1)
