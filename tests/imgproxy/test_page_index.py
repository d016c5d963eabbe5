"""Which pages the cache has: against a dictionary, through rounds that end well or not."""

from itertools import pairwise

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imgproxy.page_digest import Digests
from imgproxy.page_index import FACTOR, PageIndex

pytestmark = pytest.mark.t0


def digests(contents: list[int]) -> Digests:
    """Of pages whose contents are numbers: spread over all of the first half, as digests are."""
    rows = [((content * 0x9E3779B97F4A7C15) % 2**64, content) for content in contents]
    return numpy.array(rows, numpy.uint64).reshape(-1, 2)


class Model:
    """The same as a dictionary: content to its place, and whether it was seen."""

    def __init__(self) -> None:
        self.places: dict[int, tuple[int, int]] = {}
        self.seen: set[int] = set()

    def scan(self, index: PageIndex, image: int, first: int, contents: list[int]) -> int:
        """Look for the contents in both, and add what is new; how many those were."""
        found = index.find(digests(contents))
        for at, content in enumerate(contents):
            place = (int(found.image[at]), int(found.page[at])) if found.found[at] else None
            assert place == self.places.get(content)
        new = [content for content in dict.fromkeys(contents) if content not in self.places]
        index.add(digests(new), image, first)
        self.places.update({content: (image, first + number) for number, content in enumerate(new)})
        self.seen.update(contents)
        assert len(index) == len(self.places)
        return len(new)


rounds = st.lists(
    st.tuples(st.lists(st.lists(st.integers(0, 60), min_size=1, max_size=25), max_size=6), st.booleans()), max_size=5
)


@given(rounds)
@settings(deadline=None)
def test_it_finds_what_a_dictionary_finds(planned: list[tuple[list[list[int]], bool]]) -> None:
    index, model = PageIndex(), Model()
    for number, (chunks, good) in enumerate(planned):
        index.keep_seen()
        model.places = {content: place for content, place in model.places.items() if content in model.seen}
        model.seen.clear()
        before, first = dict(model.places), 0
        for chunk in chunks:
            first += model.scan(index, number, first, chunk)
        if not good:
            index.forget(number)
            model.places, model.seen = before, set(before)


def test_halves_that_are_alike_are_no_page() -> None:
    index = PageIndex()
    index.add(numpy.array([[7, 1]], numpy.uint64), 0, 0)
    assert not index.find(numpy.array([[7, 2], [6, 1], [8, 1]], numpy.uint64)).found.any()


def test_of_two_with_the_same_half_one_is_found() -> None:
    index, both = PageIndex(), numpy.array([[7, 1], [7, 2]], numpy.uint64)
    index.add(both, 3, 5)
    places = index.find(both)
    assert places.found.tolist() == [True, False]
    assert (places.image[0], places.page[0]) == (3, 5)


def test_it_takes_no_more_than_its_limit() -> None:
    index = PageIndex(limit=100)
    index.add(digests(list(range(100))), 0, 0)
    assert index.full
    index.add(digests(list(range(100, 200))), 0, 100)
    assert len(index) == 100
    assert index.find(digests([99, 100])).found.tolist() == [True, False]


def test_pages_beyond_what_a_number_holds_are_not_added() -> None:
    index = PageIndex()
    index.add(digests([1, 2]), 0, 2**32 - 1)
    assert not len(index)


def test_there_are_few_levels() -> None:
    index, chunk = PageIndex(), 256
    for number in range(500):
        index.add(digests(list(range(number * chunk, (number + 1) * chunk))), 0, number * chunk)
        sizes = [len(level) for level in index._levels]
        assert all(larger > FACTOR * smaller for larger, smaller in pairwise(sizes))
    assert len(index._levels) <= 5
