"""Sets of pages, against sets of numbers."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire.page_ranges import PageRange, PageRanges
from imgwire.page_server_messages import PAGE_SIZE

pytestmark = pytest.mark.t0

PAGES = 40
_range = st.tuples(st.integers(0, PAGES), st.integers(0, PAGES)).map(lambda ends: (min(ends), max(ends) + 1))


def _pages(ranges: list[PageRange]) -> set[int]:
    return {page for one in ranges for page in range(one.start // PAGE_SIZE, one.end // PAGE_SIZE)}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from([7, 9]), _range)), _range)
def test_as_a_set_of_numbers(steps: list[tuple[bool, int, tuple[int, int]]], asked: tuple[int, int]) -> None:
    ranges, model = PageRanges(), {7: set[int](), 9: set[int]()}
    for adds, pid, (start, end) in steps:
        if adds:
            ranges.add(pid, start * PAGE_SIZE, end * PAGE_SIZE)
            model[pid] |= set(range(start, end))
        else:
            taken = ranges.take(pid, start * PAGE_SIZE, end * PAGE_SIZE)
            assert _pages(taken) == model[pid] & set(range(start, end))
            model[pid] -= set(range(start, end))
    assert ranges.size == sum(map(len, model.values())) * PAGE_SIZE
    for pid, pages in model.items():
        listed = [one for one in ranges if one.pid == pid]
        assert _pages(listed) == pages
        assert all(before.end < after.start for before, after in pairwise(listed)), "merged"
        found = ranges.find(pid, asked[0] * PAGE_SIZE, asked[1] * PAGE_SIZE)
        assert _pages(found) == pages & set(range(*asked))


def test_the_first_is_of_that_many_pages_at_most() -> None:
    ranges = PageRanges()
    assert ranges.first(3) is None
    ranges.add(7, 2 * PAGE_SIZE, 10 * PAGE_SIZE)
    assert ranges.first(3) == PageRange(7, 2 * PAGE_SIZE, 5 * PAGE_SIZE)
    assert ranges.first(99) == PageRange(7, 2 * PAGE_SIZE, 10 * PAGE_SIZE)
    assert PageRange(7, 2 * PAGE_SIZE, 10 * PAGE_SIZE).pages == 8
    ranges.take(7, 0, 99 * PAGE_SIZE)
    assert ranges.first(3) is None
    assert ranges.find(8, 0, 99 * PAGE_SIZE) == []
