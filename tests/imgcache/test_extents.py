"""Lists of extents and sets of what they cover, against lists and sets of single bytes."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcache.arena import Extent
from imgcache.extents import Extents, Spans

pytestmark = pytest.mark.t0

extents = st.builds(Extent, fd=st.integers(3, 4), offset=st.integers(0, 40), length=st.integers(0, 12))
lists = st.lists(extents, max_size=12)


def places(many: "list[Extent] | Extents | Spans") -> list[tuple[int, int]]:
    """Each byte: file and offset."""
    return [(one.fd, at) for one in many for at in range(one.offset, one.offset + one.length)]


def listed(many: list[Extent]) -> Extents:
    made = Extents()
    for one in many:
        made.add(one)
    return made


@given(lists, st.data())
def test_a_list_keeps_the_order_of_bytes(many: list[Extent], data: st.DataObject) -> None:
    made, expected = listed(many), places(many)
    assert places(made) == expected
    assert made.size == len(expected)
    start = data.draw(st.integers(0, made.size))
    length = data.draw(st.integers(0, made.size - start))
    assert places(list(made.cut(start, length))) == expected[start : start + length]


@given(lists)
def test_neighbours_are_one(many: list[Extent]) -> None:
    made = listed(many)
    parts = list(made)
    assert len(made) == len(parts)
    assert not any(one.fd == other.fd and one.offset + one.length == other.offset for one, other in pairwise(parts))
    assert made.last == (parts[-1] if parts else None)


@given(lists, extents, st.data())
def test_a_part_is_replaced(many: list[Extent], new: Extent, data: st.DataObject) -> None:
    made = listed([*many, Extent(5, 0, new.length)])
    start = data.draw(st.integers(0, made.size - new.length))
    expected = places(made)
    expected[start : start + new.length] = places([new])
    assert places(made.replaced(start, new)) == expected
    assert made.replaced(start, new).size == made.size


@given(lists)
def test_a_set_has_each_byte_once(many: list[Extent]) -> None:
    assert places(Spans(many)) == sorted(set(places(many)))


@given(lists)
def test_what_several_have(many: list[Extent]) -> None:
    found = places(many)
    assert places(Spans(many, shared=True)) == sorted({place for place in found if found.count(place) > 1})


@given(lists, extents)
def test_what_is_covered_and_what_is_not(many: list[Extent], asked: Extent) -> None:
    spans, inside = Spans(many), set(places(many))
    assert places(list(spans.without(asked))) == [place for place in places([asked]) if place not in inside]
    if asked.length:
        assert spans.covers(asked) is inside.issuperset(places([asked]))
