"""One image in the cache: any range of it, read and patched across the extents that it is made of."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcache.arena import Extent
from imgcache.image import StoredImage
from imgwire.errors import RemoteProtocolError
from tests.playbook import random_bytes

pytestmark = pytest.mark.t1


def scattered(sizes: list[int]) -> tuple[StoredImage, bytes, int]:
    """An image in pieces that lie apart; its bytes; the descriptor behind them."""
    fd = os.memfd_create("test", os.MFD_CLOEXEC)
    image, content, place = StoredImage("a.img"), b"", 0
    for number, size in enumerate(sizes):
        part = random_bytes(size, number)
        os.pwrite(fd, part, place)
        image.add(Extent(fd, place, size))
        content += part
        place += size + number % 2 * 10
    return image, content, fd


ranges = st.tuples(st.integers(0, 300), st.integers(0, 300))


@given(st.lists(st.integers(1, 50), max_size=8), ranges)
def test_any_range_is_read_across_extents(sizes: list[int], where: tuple[int, int]) -> None:
    image, content, fd = scattered(sizes)
    offset, length = where
    try:
        if offset + length <= len(content):
            assert image.read(offset, length) == content[offset : offset + length]
            assert sum(extent.length for extent in image.extents(offset, length)) == length
        else:
            with pytest.raises(RemoteProtocolError, match=f"of an image of {len(content)}"):
                image.read(offset, length)
    finally:
        os.close(fd)


def nowhere(_size: int) -> Extent:
    raise AssertionError("an image that is not composed is patched in place")


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 300), st.binary(min_size=1, max_size=100))
def test_any_range_is_patched_across_extents(sizes: list[int], offset: int, data: bytes) -> None:
    image, content, fd = scattered(sizes)
    try:
        if offset + len(data) <= len(content):
            image.patch(offset, data, nowhere)
            content = content[:offset] + data + content[offset + len(data) :]
        else:
            with pytest.raises(RemoteProtocolError):
                image.patch(offset, data, nowhere)
        assert image.read(0, len(content)) == content
    finally:
        os.close(fd)


def test_neighbours_become_one_extent() -> None:
    image = StoredImage("a.img")
    for extent in (Extent(3, 0, 10), Extent(3, 10, 5), Extent(4, 15, 5), Extent(4, 21, 1)):
        image.add(extent)
    assert list(image.extents()) == [Extent(3, 0, 15), Extent(4, 15, 5), Extent(4, 21, 1)]
    assert list(image.extents(12, 7)) == [Extent(3, 12, 3), Extent(4, 15, 4)]
    assert image.heap.last == Extent(4, 21, 1)
