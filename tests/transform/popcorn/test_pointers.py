"""Addresses on stacks."""

import struct

import pytest

from transform.errors import TransformError
from transform.popcorn.pointers import Pointers

pytestmark = pytest.mark.t0
VARIABLES = [(0x1010, 0x1020, 0x2040), (0x1010, 0x1014, 0x2040), (0x1020, 0x1028, 0x2010), (0x1100, 0x1140, 0x1100)]
POINTERS = Pointers([(0x5000, 0x6000), (0x1000, 0x1200)], VARIABLES, {0x1150: 0x2150})


@pytest.mark.parametrize(
    ("value", "moved"),
    [
        (0, 0), (0xFFF, 0xFFF), (0x1200, 0x1200), (0x4000, 0x4000), (2**64 - 1, 2**64 - 1),  # on no stack
        (0x1010, 0x2040), (0x101F, 0x204F),
        (0x1020, 0x2010),  # the second's first byte, and the end of the first
        (0x1028, 0x2018),  # behind the last byte
        (0x1140, 0x1140),
        (0x1150, 0x2150),  # a frame pointer
    ],
)  # fmt: skip
def test_addresses(value: int, moved: int) -> None:
    assert POINTERS.moved(value, "thread") == moved


@pytest.mark.parametrize("value", [0x1000, 0x100F, 0x1029, 0x1141, 0x11FF, 0x5000])
def test_an_address_in_no_variable_is_refused(value: int) -> None:
    with pytest.raises(TransformError, match=f"thread: has the address {value:#x}, which is on a stack and in no"):
        POINTERS.moved(value, "thread")


def test_words_lie_as_in_memory() -> None:
    words = struct.pack("<QQ", 0x1011, 7)
    assert POINTERS.moved_words(words + b"abc", 0, "thread") == struct.pack("<QQ", 0x2041, 7) + b"abc"
    assert POINTERS.moved_words(b"abc" + words, 5, "thread") == b"abc" + struct.pack("<QQ", 0x2041, 7)
    assert POINTERS.moved_words(words, 4, "thread") == words
    assert POINTERS.moved_words(b"short", 0, "thread") == b"short"


def test_variables_that_overlap() -> None:
    parts = Pointers([(0, 100)], [(8, 16, 108), (8, 40, 108), (12, 44, 112)], {})
    assert [parts.moved(value, "thread") for value in (8, 20, 44)] == [108, 120, 144]
    with pytest.raises(TransformError, match="0x8 and 0xc overlap on one ISA only"):
        Pointers([(0, 100)], [(8, 16, 108), (12, 14, 200)], {})
    with pytest.raises(TransformError, match="overlap"):
        Pointers([(0, 100)], [(8, 16, 108), (8, 16, 200)], {})
