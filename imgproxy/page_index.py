"""Which pages the cache has, by digest, and where: 25 bytes a page, and up to 80 while levels are merged.

A page is where an image brought it: image number, and which of its pages. The entries lie in sorted arrays, *levels*,
each more than FACTOR times as large as the next: a lookup is a binary search in each, for all pages of a chunk at once;
an addition makes a level of its own, and levels that have come too close in size are merged. So nothing here is done
page by page, and adding N pages costs about N log N.

What a round has seen, found or added, is what the next may refer to; the rest is dropped when a round ends.
"""

from dataclasses import dataclass

import numpy
from numpy.typing import NDArray

from imgproxy.page_digest import Digests

#: Pages that are remembered at most: 64 GiB of distinct memory, in 420 MB. Those beyond are sent whenever they come.
LIMIT = 1 << 24
#: Pages that one image may bring and be remembered with: 16 TiB.
_PAGES = 1 << 32
#: With a million pages and chunks of 256, factors from 3 to 8 do not differ; 2 merges twice as much.
FACTOR = 4


@dataclass
class _Level:
    """Entries in ascending order of `high`, as columns."""

    high: NDArray[numpy.uint64]  #: the first half of the digest
    low: NDArray[numpy.uint64]
    image: NDArray[numpy.uint32]
    page: NDArray[numpy.uint32]
    seen: NDArray[numpy.bool_]  #: in this round

    def __len__(self) -> int:
        return len(self.high)

    def chosen(self, which: "NDArray[numpy.bool_] | NDArray[numpy.intp]") -> "_Level":
        return _Level(self.high[which], self.low[which], self.image[which], self.page[which], self.seen[which])

    def merged(self, other: "_Level") -> "_Level":
        both = _Level(
            numpy.concatenate((self.high, other.high)),
            numpy.concatenate((self.low, other.low)),
            numpy.concatenate((self.image, other.image)),
            numpy.concatenate((self.page, other.page)),
            numpy.concatenate((self.seen, other.seen)),
        )
        return both.chosen(numpy.argsort(both.high, kind="stable"))  # two sorted runs: linear


@dataclass(frozen=True)
class Places:
    """Where pages were found: for each, whether, and if so which page of which image."""

    found: NDArray[numpy.bool_]
    image: NDArray[numpy.uint32]
    page: NDArray[numpy.uint64]


class PageIndex:
    """See the module's text."""

    def __init__(self, limit: int = LIMIT) -> None:
        self._limit = limit
        self._levels: list[_Level] = []  # the largest first

    def __len__(self) -> int:
        return sum(map(len, self._levels))

    @property
    def full(self) -> bool:
        """Whether no page is added any more."""
        return len(self) >= self._limit

    def find(self, digests: Digests) -> Places:
        """Where these pages are; what is found has been seen.

        Of pages whose digests share the first half only one is found: the others are sent once more than they need.
        """
        count = len(digests)
        places = Places(
            numpy.zeros(count, numpy.bool_), numpy.zeros(count, numpy.uint32), numpy.zeros(count, numpy.uint64)
        )
        high, low = digests[:, 0].copy(), digests[:, 1].copy()
        for level in self._levels:
            at = numpy.minimum(numpy.searchsorted(level.high, high), len(level) - 1)
            same = (level.high[at] == high) & (level.low[at] == low)
            at = at[same]
            places.found[same] = level.seen[at] = True
            places.image[same], places.page[same] = level.image[at], level.page[at]
        return places

    def add(self, digests: Digests, image: int, first: int) -> None:
        """`image` brings these pages, all different, from its page `first` on."""
        if not len(digests) or self.full or first + len(digests) > _PAGES:
            return
        order = numpy.argsort(digests[:, 0], kind="stable")
        pages = numpy.arange(first, first + len(digests), dtype=numpy.uint32)
        self._levels.append(
            _Level(
                digests[order, 0],
                digests[order, 1],
                numpy.full(len(digests), image, numpy.uint32),
                pages[order],
                numpy.ones(len(digests), numpy.bool_),
            )
        )
        while len(self._levels) > 1 and len(self._levels[-2]) <= FACTOR * len(self._levels[-1]):
            last = self._levels.pop()
            self._levels[-1] = self._levels[-1].merged(last)

    def keep_seen(self) -> None:
        """A round has ended well: forget what it has not seen. Nothing is seen yet in the next."""
        self._levels = [kept for level in self._levels if len(kept := level.chosen(level.seen))]
        for level in self._levels:
            level.seen[:] = False

    def forget(self, image: int) -> None:
        """A round has failed: forget what its images, those from number `image` on, have brought; the rest stays."""
        self._levels = [kept for level in self._levels if len(kept := level.chosen(level.image < image))]
        for level in self._levels:
            level.seen[:] = True
