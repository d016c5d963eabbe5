"""Which pages of a chunk cross the link, and how the image is composed of them and of those that the cache has.

Pure: pages in; out come the new ones, each once, and the runs that `Compose` tells. Between rounds it forgets what the
cache forgets, so that nothing is ever referred to that is not kept there.
"""

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from imgproxy.page_digest import Digests, PageDigest
from imgproxy.page_index import LIMIT, PageIndex
from imgwire.frames import MAX_DATA
from imgwire.messages import PAGE, ZEROES

_RUN = numpy.dtype([("image", "<u4"), ("page", "<u8"), ("pages", "<u4")])


@dataclass
class PageCounts:
    """Pages of a round: those that went out, those that the cache had, those of zeroes."""

    sent: int = 0
    skipped: int = 0
    zero: int = 0

    def __add__(self, other: "PageCounts") -> "PageCounts":
        return PageCounts(self.sent + other.sent, self.skipped + other.skipped, self.zero + other.zero)


@dataclass(frozen=True)
class Scanned:
    """A chunk: its new pages, and the runs of all of it, as records of `Compose`."""

    size: int  #: bytes of the chunk
    new: bytes
    runs: bytes


class Deduplicator:
    """What one session has sent. Its calls are not for two threads at once."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.before = PageCounts()  #: of the rounds before
        self.counts = PageCounts()  #: of this round
        self._digest = PageDigest(MAX_DATA)
        self._index = PageIndex(limit)
        self._first_image = 0

    def begin_round(self, first_image: int) -> None:
        """Another round; its images have numbers from `first_image` on. What the one before has is what is there."""
        self.before, self.counts = self.before + self.counts, PageCounts()
        self._index.keep_seen()
        self._first_image = first_image

    def drop_round(self) -> None:
        """This round has failed."""
        self._index.forget(self._first_image)

    def scan(self, image: int, first: int, pages: memoryview) -> Scanned:
        """The next pages of `image`, MAX_DATA bytes at most, which has brought `first` pages so far."""
        digests = self._digest.of(pages)
        zero = (digests == self._digest.of_zeroes).all(axis=1)
        places = self._index.find(digests)
        source, page, new = places.image, places.page, ~zero & ~places.found
        if new.any():
            candidates = numpy.flatnonzero(new)
            firsts, like = _first_of_each(digests[candidates])
            number = (numpy.cumsum(firsts) + (first - 1)).astype(numpy.uint64)
            source[candidates], page[candidates] = image, number[like]
            new[candidates] = firsts
            self._index.add(digests[new], image, first)
        source[zero], page[zero] = ZEROES, numpy.flatnonzero(zero)
        self._count(int(new.sum()), int(zero.sum()), len(digests))
        return Scanned(len(pages), _gathered(pages, new), _runs(source, page))

    def _count(self, new: int, zero: int, pages: int) -> None:
        self.counts.sent += new
        self.counts.zero += zero
        self.counts.skipped += pages - new - zero


def _first_of_each(digests: Digests) -> tuple[NDArray[numpy.bool_], NDArray[numpy.intp]]:
    """Which are the first of their content; and for each page, the first one that is like it."""
    order = numpy.lexsort((digests[:, 1], digests[:, 0]))
    ordered = digests[order]
    begins = numpy.ones(len(order), numpy.bool_)
    begins[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    like = numpy.empty(len(order), numpy.intp)
    like[order] = order[begins][numpy.cumsum(begins) - 1]
    return like == numpy.arange(len(order)), like


def _gathered(pages: memoryview, which: NDArray[numpy.bool_]) -> bytes:
    if which.all():
        return bytes(pages)
    rows = numpy.frombuffer(pages, numpy.uint8).reshape(-1, PAGE)
    return rows[which].tobytes()


def _runs(source: NDArray[numpy.uint32], page: NDArray[numpy.uint64]) -> bytes:
    begins = numpy.ones(len(source), numpy.bool_)
    begins[1:] = (source[1:] != source[:-1]) | (page[1:] != page[:-1] + numpy.uint64(1))
    starts = numpy.flatnonzero(begins)
    runs = numpy.empty(len(starts), _RUN)
    runs["image"], runs["page"] = source[starts], page[starts]
    runs["page"][runs["image"] == ZEROES] = 0
    runs["pages"] = numpy.diff(numpy.append(starts, len(source)))
    return runs.tobytes()
