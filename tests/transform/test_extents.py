"""Extents of memory, by a pagemap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transform.synthetic import extent, image, pagemap
from transform.errors import ImageError
from transform.extents import ADDRESS_LIMIT, PAGE_SIZE, PE_LAZY, PE_PARENT, PE_PRESENT, Pagemap, Residence
from transform.images.proto import memory_pb2

pytestmark = pytest.mark.t0

NAME = "pagemap-1.img"
LIMIT = 1 << 47


def read(*extents: memory_pb2.PagemapEntry) -> Pagemap:
    return Pagemap(NAME, pagemap(7, *extents))


@pytest.mark.parametrize(
    "extents",
    [
        [extent(0x2000, 1), extent(0x1000, 1)],
        [extent(0x1000, 2), extent(0x2000, 1)],
        [extent(0x1001, 1)],
        [extent(2**64 - PAGE_SIZE, 2)],
    ],
)
def test_extents_out_of_order_or_bounds(extents: list[memory_pb2.PagemapEntry]) -> None:
    with pytest.raises(ImageError, match="out of order or bounds"):
        read(*extents)


def test_a_pagemap_without_a_head() -> None:
    with pytest.raises(ImageError, match="without a head"):
        Pagemap(NAME, image("pagemap"))


def test_where_pages_are() -> None:
    found = read(
        extent(0x1000, 2, flags=PE_PARENT), extent(0x3000, 1), extent(0x5000, 1, flags=PE_LAZY), extent(0x6000, 1)
    )
    assert found.pages == "pages-7.img"
    assert found.locate(0xFFF) == (None, 0, 0x1000)
    assert found.locate(0x2000) == (Residence.PARENT, 0x1000, 0x3000)
    assert found.locate(0x3010) == (Residence.PRESENT, 0x10, 0x4000)
    assert found.locate(0x4000) == (None, 0, 0x5000)
    assert found.locate(0x5000)[0] is Residence.LAZY
    assert found.locate(0x6000) == (Residence.PRESENT, PAGE_SIZE, 0x7000), "what is elsewhere takes no room"
    assert found.locate(0x7000) == (None, 0, ADDRESS_LIMIT)


def test_larger_pages() -> None:
    found = Pagemap(NAME, pagemap(1, extent(0x10000, 1), extent(0x20000, 1)))
    assert found.in_pages_of(PAGE_SIZE) is found
    assert found.in_pages_of(0x10000).locate(0x2FFFF) == (Residence.PRESENT, 0x1FFFF, 0x30000)
    with pytest.raises(ImageError, match="out of order"):
        Pagemap(NAME, pagemap(1, extent(0x11000, 1))).in_pages_of(0x10000)


ranges = st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3)), max_size=6)


@given(ranges, st.integers(0, 30), st.integers(1, 30))
def test_overlaps(steps: list[tuple[int, int]], start: int, length: int) -> None:
    end = start + length
    at, extents, pages = 0, [], set[int]()
    for gap, size in steps:
        extents.append(extent((at + gap) * PAGE_SIZE, size, flags=PE_PRESENT))
        pages |= set(range(at + gap, at + gap + size))
        at += gap + size
    found = list(read(*extents).overlaps(start * PAGE_SIZE, end * PAGE_SIZE))
    assert len(found) <= len(extents)
    assert all(first < last for first, last in found)
    inside = [page for first, last in found for page in range(first // PAGE_SIZE, last // PAGE_SIZE)]
    assert inside == sorted(pages & set(range(start, end)))


def test_what_is_above_a_limit_is_cut_off() -> None:
    low = [extent(LIMIT - 0x4000, 1), extent(LIMIT - 0x2000, 2, flags=PE_PARENT)]
    assert read(*low, extent(LIMIT, 1), extent(LIMIT + 0x1000, 1)).below(LIMIT) == pagemap(7, *low)
    assert read(extent(LIMIT, 1)).below(LIMIT) == pagemap(7)
    whole = read(*low)
    assert whole.below(LIMIT) is whole.data


def test_what_crosses_a_limit_is_refused() -> None:
    with pytest.raises(ImageError, match="reaches beyond 0x800000000000"):
        read(extent(LIMIT - 0x1000, 2)).below(LIMIT)
