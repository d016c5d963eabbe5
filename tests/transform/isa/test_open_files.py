"""Flags of open files."""

import pytest

from transform.isa.open_files import swap_flags

pytestmark = pytest.mark.t0


def test_flags_of_open_files_are_swapped_both_ways() -> None:
    assert swap_flags(0x4000 | 0x8000 | 0x801) == 0x10000 | 0x20000 | 0x801
    assert all(swap_flags(swap_flags(flags)) == flags for flags in (0, 0x8001, 0x34000, 0xC000, 0xFFFFFFFF))
