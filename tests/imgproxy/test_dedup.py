"""Chunks of pages, taken apart into what is new and where the rest is: put together again by somebody who knows only
what was sent."""

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from imgproxy.dedup import Deduplicator, Scanned
from imgproxy.page_digest import PageDigest
from imgwire.messages import RUN, ZEROES
from tests.playbook import random_bytes
from transform.extents import PAGE_SIZE

pytestmark = pytest.mark.t0

contents = st.integers(0, 30)


def page(content: int) -> bytes:
    """Zero: a page of zeroes."""
    return content.to_bytes(2, "little") * (PAGE_SIZE // 2)


def joined(numbers: list[int]) -> bytes:
    return b"".join(map(page, numbers))


class Receiver:
    """Knows what was sent of each image."""

    def __init__(self) -> None:
        self.heaps: dict[int, bytes] = {}

    def take(self, image: int, scanned: Scanned) -> bytes:
        """The chunk."""
        self.heaps[image] = self.heaps.get(image, b"") + scanned.new
        return b"".join(self._run(*run) for run in RUN.iter_unpack(scanned.runs))

    def _run(self, image: int, first: int, pages: int) -> bytes:
        if image == ZEROES:
            assert first == 0
            return bytes(pages * PAGE_SIZE)
        found = self.heaps[image][first * PAGE_SIZE : (first + pages) * PAGE_SIZE]
        assert len(found) == pages * PAGE_SIZE, "a page that was not sent"
        return found


@given(st.lists(st.tuples(st.integers(0, 2), st.lists(contents, min_size=1, max_size=40)), max_size=8))
@settings(deadline=None)
def test_each_content_goes_out_once(chunks: list[tuple[int, list[int]]]) -> None:
    pages, receiver, first = Deduplicator(), Receiver(), {0: 0, 1: 0, 2: 0}
    for image, numbers in chunks:
        scanned = pages.scan(image, first[image], memoryview(joined(numbers)))
        first[image] += len(scanned.new) // PAGE_SIZE
        assert receiver.take(image, scanned) == joined(numbers)
        assert scanned.size == len(numbers) * PAGE_SIZE
    every = [number for _, numbers in chunks for number in numbers]
    assert pages.counts.sent == len(set(every) - {0}) == sum(first.values())
    assert pages.counts.zero == every.count(0)
    assert pages.counts.sent + pages.counts.zero + pages.counts.skipped == len(every)


@given(st.lists(st.tuples(st.lists(contents, min_size=1, max_size=40), st.booleans()), max_size=6))
@settings(deadline=None)
def test_a_round_refers_to_the_good_one_before_and_to_itself(planned: list[tuple[list[int], bool]]) -> None:
    pages, receiver, before = Deduplicator(), Receiver(), set[int]()
    for image, (numbers, good) in enumerate(planned):
        pages.begin_round(image)
        scanned = pages.scan(image, 0, memoryview(joined(numbers)))
        assert receiver.take(image, scanned) == joined(numbers)
        assert len(scanned.new) == len(set(numbers) - before - {0}) * PAGE_SIZE
        if good:
            before = set(numbers)
        else:
            pages.drop_round()
            del receiver.heaps[image]


def test_runs_are_as_long_as_can_be() -> None:
    pages = Deduplicator()
    scanned = pages.scan(1, 0, memoryview(joined([1, 2, 3, 0, 0, 4, 1, 2, 3, 4])))
    assert list(RUN.iter_unpack(scanned.runs)) == [(1, 0, 3), (ZEROES, 0, 2), (1, 3, 1), (1, 0, 4)]


def test_a_chunk_of_new_pages_is_one_run() -> None:
    data = random_bytes(256 * PAGE_SIZE)
    scanned = Deduplicator().scan(9, 70, memoryview(data))
    assert scanned.new == data
    assert list(RUN.iter_unpack(scanned.runs)) == [(9, 70, 256)]


def test_digests_differ_from_session_to_session() -> None:
    data = memoryview(random_bytes(2 * PAGE_SIZE))
    one, other = PageDigest(len(data)), PageDigest(len(data))
    assert (one.of(data) == one.of(data)).all()
    assert not (one.of(data) == other.of(data)).any()
    assert (one.of(memoryview(bytes(PAGE_SIZE))) == one.of_zeroes).all()


@pytest.mark.parametrize("position", [0, 1, 2047, 4095])
def test_one_bit_makes_another_page(position: int) -> None:
    data = bytearray(random_bytes(PAGE_SIZE))
    digest = PageDigest(PAGE_SIZE)
    before = digest.of(memoryview(data)).tolist()
    data[position] ^= 0x80
    assert digest.of(memoryview(data)).tolist() != before


def test_pages_that_collide_without_a_cipher_do_not() -> None:
    """Two bits flipped, a lane apart as xxh3 reads: for one seed in 65 that cancels out, whatever else is there."""
    page = bytearray(random_bytes(PAGE_SIZE))
    low = int.from_bytes(page[0:4], "little") ^ 0x0A0A0410
    page[12 * 64 : 12 * 64 + 4] = low.to_bytes(4, "little")
    collisions = without = 0
    for high in (page[7] & 0x80, ~page[7] & 0x80):
        page[12 * 64 + 7] = (page[7] & 0x7F) | high
        page[12 * 64 + 4 : 12 * 64 + 7] = page[4:7]
        other = bytearray(page)
        other[7] ^= 0x80
        other[12 * 64 + 7] ^= 0x80
        for seed in range(500):
            spread = seed * 0x9E3779B97F4A7C15 % 2**64
            without += xxhash.xxh3_128_digest(page, spread) == xxhash.xxh3_128_digest(other, spread)
            digest = PageDigest(2 * PAGE_SIZE)
            first, second = digest.of(memoryview(page + other)).tolist()
            collisions += first == second
    assert without > 0, "pages that collide were made"
    assert collisions == 0
