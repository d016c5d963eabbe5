"""Frames that are equal: what stack maps say, and what each ISA lacks."""

import pytest

from toolchain.frames import Frame, Pad, add_pads
from toolchain.tools import AARCH64, X86_64, Isa

pytestmark = pytest.mark.t0


def test_the_smaller_frame_is_padded() -> None:
    pads: dict[Isa, dict[int, Pad]] = {X86_64: {}, AARCH64: {1: Pad(16)}}
    frames = {
        X86_64: {1: Frame(32, 32), 2: Frame(64, 32)},
        AARCH64: {1: Frame(64, 48), 2: Frame(48, 32)},
    }
    assert add_pads(frames, pads)
    assert pads == {X86_64: {1: Pad(32)}, AARCH64: {1: Pad(16), 2: Pad(16)}}


def test_variables_are_equally_far_below_the_frame_pointer() -> None:
    """With room above that one ISA takes; then with the pads, which are in the frames."""
    pads: dict[Isa, dict[int, Pad]] = {X86_64: {}, AARCH64: {}}
    assert add_pads({X86_64: {1: Frame(320, 304)}, AARCH64: {1: Frame(320, 320)}}, pads)
    assert pads == {X86_64: {1: Pad(0, 16)}, AARCH64: {1: Pad(16, 0)}}
    assert not add_pads({X86_64: {1: Frame(336, 320)}, AARCH64: {1: Frame(336, 336)}}, pads)


def test_equal_frames_need_nothing() -> None:
    pads: dict[Isa, dict[int, Pad]] = {X86_64: {}, AARCH64: {}}
    assert not add_pads({X86_64: {1: Frame(32, 16)}, AARCH64: {1: Frame(32, 16)}}, pads)
    assert pads == {X86_64: {}, AARCH64: {}}
