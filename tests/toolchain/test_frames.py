"""Frames of equal size: what stack maps say, and what each ISA lacks."""

import pytest

from toolchain.frames import add_pads
from toolchain.tools import AARCH64, X86_64, Isa

pytestmark = pytest.mark.t0


def test_the_smaller_frame_is_padded() -> None:
    pads: dict[Isa, dict[int, int]] = {X86_64: {}, AARCH64: {1: 16}}
    assert add_pads({X86_64: {1: 32, 2: 64}, AARCH64: {1: 64, 2: 48}}, pads)
    assert pads == {X86_64: {1: 32}, AARCH64: {1: 16, 2: 16}}


def test_equal_frames_need_nothing() -> None:
    pads: dict[Isa, dict[int, int]] = {X86_64: {}, AARCH64: {}}
    assert not add_pads({X86_64: {1: 32}, AARCH64: {1: 32}}, pads)
    assert pads == {X86_64: {}, AARCH64: {}}
