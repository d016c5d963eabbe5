"""Pagemap images that are made are what the codec reads, and what a real CRIU wrote for the same extents."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transform.images.codec import decode
from transform.images.pagemap import PagemapWriter, encode_extent, extents_at_source, is_wide, task_of
from transform.images.proto import memory_pb2

pytestmark = pytest.mark.t0

addresses = st.integers(0, 2**35).map(lambda page: page * 4096)
extents = st.lists(st.tuples(addresses, st.integers(1, 2**33), st.integers(1, 7)))


@given(st.integers(1, 2**32 - 1), extents)
def test_what_is_written_is_read(pages_id: int, wanted: list[tuple[int, int, int]]) -> None:
    writer = PagemapWriter(pages_id)
    for extent in wanted:
        writer.add(*extent)
    image = decode("pagemap-7.img", writer.encode())
    (head,) = image.messages(memory_pb2.PagemapHead)
    assert head.pages_id == pages_id
    read = image.messages(memory_pb2.PagemapEntry)
    assert [(one.vaddr, one.nr_pages or one.compat_nr_pages, one.flags) for one in read] == wanted


def test_the_bytes_are_criu_s() -> None:
    """As `criu dump` 4.1.1 writes them."""
    writer = PagemapWriter(1)
    writer.add(0x400000, 3, 4)
    assert writer.encode() == bytes.fromhex("194356542540085602000000080109000000088080800210032004")


def test_a_count_of_64_bits_is_told_twice() -> None:
    """Old readers see as much as their field holds."""
    entry = memory_pb2.PagemapEntry.FromString(encode_extent(0, 2**33, 4)[4:])
    assert (entry.compat_nr_pages, entry.nr_pages) == (2**32 - 1, 2**33)
    assert memory_pb2.PagemapEntry.FromString(encode_extent(0, 5, 4, wide=True)[4:]).nr_pages == 5
    assert not memory_pb2.PagemapEntry.FromString(encode_extent(0, 5, 4)[4:]).HasField("nr_pages")


@given(extents)
def test_what_criu_has_kept(wanted: list[tuple[int, int, int]]) -> None:
    writer = PagemapWriter(1)
    for extent in wanted:
        writer.add(*extent)
    kept = list(extents_at_source("pagemap-7.img", writer.encode()))
    assert kept == [(address, address + pages * 4096) for address, pages, flags in wanted if flags == 2]


def test_what_tells_the_newer_form() -> None:
    head = PagemapWriter(1).encode()
    assert not is_wide("pagemap-7.img", head)
    assert not is_wide("pagemap-7.img", head + encode_extent(0, 5, 2))
    assert is_wide("pagemap-7.img", head + encode_extent(0, 5, 2) + encode_extent(0x8000, 5, 2, wide=True))


@pytest.mark.parametrize(
    ("name", "pid"), [("pagemap-7.img", 7), ("pagemap-shmem-7.img", None), ("pages-7.img", None), ("pagemap-7", None)]
)
def test_whose_pagemap(name: str, pid: int | None) -> None:
    assert task_of(name) == pid
