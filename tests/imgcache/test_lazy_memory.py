"""Which pages are here, against a list of pages; what the source may not send."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgcache.arena import Extent, pread_all, pwrite_all
from imgcache.image import StoredImage
from imgcache.lazy_memory import ASKED_AT_ONCE, LazyMemory
from imgwire.errors import RemoteProtocolError
from imgwire.messages import MAX_RUNS, Pages, WantPages
from imgwire.page_server_messages import PAGE_SIZE
from transform.images.pagemap import PagemapWriter

pytestmark = pytest.mark.t1

BASE = 0x7F0000000000
PAGES = 64


@contextmanager
def _memory() -> Iterator[tuple[LazyMemory, int]]:
    """The memory of a process 7 with PAGES pages at BASE to come, and a file for all bytes."""
    file = os.memfd_create("test")
    try:
        memory = LazyMemory(StoredImage("pages-following.img"))
        memory.expect([_pagemap(file)])
        yield memory, file
    finally:
        os.close(file)


@pytest.fixture
def made() -> Iterator[tuple[LazyMemory, int]]:
    """A memory for one test."""
    with _memory() as both:
        yield both


def _pagemap(file: int) -> StoredImage:
    writer = PagemapWriter(1)
    writer.add(BASE - 8 * PAGE_SIZE, 4, 4)  # present: not to come
    writer.add(BASE, PAGES, 2)
    return _stored(file, "pagemap-7.img", writer.encode())


def _stored(file: int, name: str, data: bytes) -> StoredImage:
    image = StoredImage(name)
    _append(file, image, data)
    return image


def _append(file: int, image: StoredImage, data: bytes) -> None:
    end = os.fstat(file).st_size
    pwrite_all(file, data, end)
    image.add(Extent(file, end, len(data)))


def _content(page: int) -> bytes:
    return bytes([page + 1]) * PAGE_SIZE


def _read(memory: LazyMemory, page: int, pages: int) -> bytes:
    parts = memory.find(7, BASE + page * PAGE_SIZE, pages)
    return b"".join(pread_all(part.fd, part.length, part.offset) for part in parts)


@given(data=st.data())
def test_pages_in_any_order(data: st.DataObject) -> None:
    with _memory() as (memory, file):
        _in_any_order(memory, file, data)


def _in_any_order(memory: LazyMemory, file: int, data: st.DataObject) -> None:
    assert memory.total == PAGES * PAGE_SIZE
    cuts = sorted(data.draw(st.sets(st.integers(1, PAGES - 1))))
    chunks = data.draw(st.permutations(list(zip([0, *cuts], [*cuts, PAGES], strict=True))))
    stream = b""
    for start, end in chunks:
        memory.announce(Pages(7, BASE + start * PAGE_SIZE, end - start))
        stream += b"".join(map(_content, range(start, end)))
        if data.draw(st.booleans()):
            continue  # they come late
        size = data.draw(st.integers(1, len(stream)))
        _append(file, memory.image, stream[:size])
        stream = stream[size:]
        memory.arrived()
    _append(file, memory.image, stream)
    memory.arrived()
    assert memory.here == memory.total
    start = data.draw(st.integers(0, PAGES - 1))
    count = data.draw(st.integers(1, PAGES - start))
    assert _read(memory, start, count) == b"".join(map(_content, range(start, start + count)))


def test_half_a_page_is_no_page(made: tuple[LazyMemory, int]) -> None:
    memory, file = made
    memory.announce(Pages(7, BASE, 2))
    _append(file, memory.image, _content(0) + _content(1)[:100])
    memory.arrived()
    assert _read(memory, 0, 2) == _content(0)
    assert _read(memory, 1, 1) == b""
    _append(file, memory.image, _content(1)[100:])
    memory.arrived()
    assert _read(memory, 0, 9) == _content(0) + _content(1)


def test_what_is_asked_of_the_source(made: tuple[LazyMemory, int]) -> None:
    memory, _ = made
    assert memory.ask(7, BASE) == WantPages(7, BASE, ASKED_AT_ONCE)
    assert memory.ask(7, BASE + PAGE_SIZE) is None, "asked for"
    assert memory.ask(7, BASE + (PAGES - 1) * PAGE_SIZE) == WantPages(7, BASE + (PAGES - 1) * PAGE_SIZE, 1)
    assert memory.ask(8, BASE) is None, "nobody has it"
    memory.announce(Pages(7, BASE + 30 * PAGE_SIZE, 4))
    assert memory.ask(7, BASE + 31 * PAGE_SIZE) is None, "on its way"
    assert memory.ask(7, BASE + 28 * PAGE_SIZE) == WantPages(7, BASE + 28 * PAGE_SIZE, 2)


@pytest.mark.parametrize(
    "pages",
    [Pages(7, BASE, 3), Pages(7, BASE + PAGES * PAGE_SIZE, 1), Pages(8, BASE, 1), Pages(7, BASE - 8 * PAGE_SIZE, 1)],
    ids=["again", "behind", "another's", "present"],
)
def test_pages_that_are_not_to_come(made: tuple[LazyMemory, int], pages: Pages) -> None:
    memory, _ = made
    memory.announce(Pages(7, BASE + 2 * PAGE_SIZE, 1))
    with pytest.raises(RemoteProtocolError, match="not, or no more, to come"):
        memory.announce(pages)


def test_bytes_that_were_not_announced(made: tuple[LazyMemory, int]) -> None:
    memory, file = made
    memory.announce(Pages(7, BASE, 1))
    _append(file, memory.image, _content(0) * 2)
    with pytest.raises(RemoteProtocolError, match="not announced"):
        memory.arrived()


def test_a_pagemap_that_is_none(made: tuple[LazyMemory, int]) -> None:
    memory, file = made
    with pytest.raises(RemoteProtocolError, match=r"pagemap-9\.img"):
        memory.expect([_stored(file, "pagemap-9.img", b"no pagemap")])


def test_another_source_begins_anew(made: tuple[LazyMemory, int]) -> None:
    """What one had announced and not sent is due again, from where its bytes ended: in the middle of a page."""
    memory, file = made
    assert memory.ask(7, BASE + 40 * PAGE_SIZE) == WantPages(7, BASE + 40 * PAGE_SIZE, ASKED_AT_ONCE)
    memory.announce(Pages(7, BASE, 4))
    _append(file, memory.image, _content(0) + _content(1) + _content(2)[:100])
    memory.arrived()
    memory.begin_anew()
    (told,) = memory.lacking()
    assert (told.image, told.offset, told.more) == (memory.number, 2 * PAGE_SIZE + 100, False)
    assert list(told) == [(7, BASE + 2 * PAGE_SIZE, PAGES - 2)]
    wanted = [WantPages(7, BASE + 2 * PAGE_SIZE, 2), WantPages(7, BASE + 40 * PAGE_SIZE, ASKED_AT_ONCE)]
    assert list(memory.wanted()) == wanted
    memory.announce(Pages(7, BASE + 2 * PAGE_SIZE, PAGES - 2))
    _append(file, memory.image, b"".join(map(_content, range(2, PAGES))))
    memory.arrived()
    assert _read(memory, 0, PAGES) == b"".join(map(_content, range(PAGES)))
    (told,) = memory.lacking()
    assert list(told) == [] and not told.more


def test_many_places_are_told_in_several_messages() -> None:
    file = os.memfd_create("test")
    try:
        writer = PagemapWriter(1)
        for number in range(MAX_RUNS + 1):
            writer.add(BASE + 2 * number * PAGE_SIZE, 1, 2)
        memory = LazyMemory(StoredImage("pages-following.img"), 5)
        memory.expect([_stored(file, "pagemap-7.img", writer.encode())])
        told = list(memory.lacking())
        assert [(one.image, len(list(one)), one.more) for one in told] == [(5, MAX_RUNS, True), (5, 1, False)]
    finally:
        os.close(file)
