"""Mappings that only one ISA can have."""

import pytest

from tests.transform.synthetic import extent, pagemap
from transform.errors import TransformError
from transform.isa.address_space import X86_LIMIT, below_limit, present_extents

pytestmark = pytest.mark.t0


def test_what_is_above_the_limit_is_cut_off() -> None:
    low, high = extent(X86_LIMIT - 0x2000, 2), extent(X86_LIMIT, 1)
    assert below_limit("pagemap-1.img", pagemap(1, low, high)) == below_limit("pagemap-1.img", pagemap(1, low))


def test_what_crosses_the_limit_is_refused() -> None:
    with pytest.raises(TransformError, match="crosses the end"):
        below_limit("pagemap-1.img", pagemap(1, extent(X86_LIMIT - 0x1000, 2)))


def test_only_what_has_pages_is_present() -> None:
    data = pagemap(1, extent(0x1000, 2), extent(0x5000, 1))
    assert list(present_extents("pagemap-1.img", data, [(0x2000, 0x6000)])) == [(0x2000, 0x3000), (0x5000, 0x6000)]
