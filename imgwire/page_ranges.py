"""Sets of pages, for post-copy: which pages of which process are still to be asked for, or are here.

As sorted ranges for each process; what is taken out or put in touches its neighbours only.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import NamedTuple

from imgwire.page_server_messages import PAGE_SIZE


class PageRange(NamedTuple):
    """Pages that lie together: `start` and `end` are addresses, `end` the first one behind them."""

    pid: int
    start: int
    end: int

    @property
    def pages(self) -> int:
        """How many."""
        return (self.end - self.start) // PAGE_SIZE


class PageRanges:
    """A set of pages. `size` is its bytes."""

    def __init__(self) -> None:
        self._starts: dict[int, list[int]] = {}
        self._ends: dict[int, list[int]] = {}
        self.size = 0

    def __iter__(self) -> Iterator[PageRange]:
        for pid in sorted(self._starts):
            for start, end in zip(self._starts[pid], self._ends[pid], strict=True):
                yield PageRange(pid, start, end)

    def add(self, pid: int, start: int, end: int) -> None:
        """Put the pages of a range in; those that are there already stay."""
        starts, ends = self._starts.setdefault(pid, []), self._ends.setdefault(pid, [])
        first, last = bisect_left(ends, start), bisect_right(starts, end)  # all that touch it
        if first < last:
            start, end = min(start, starts[first]), max(end, ends[last - 1])
        before = sum(ends[index] - starts[index] for index in range(first, last))
        starts[first:last], ends[first:last] = [start], [end]
        self.size += end - start - before

    def find(self, pid: int, start: int, end: int) -> list[PageRange]:
        """The pages of a range that are in the set, ascending."""
        first, last = self._overlap(pid, start, end)
        starts, ends = self._starts.get(pid, []), self._ends.get(pid, [])
        return [PageRange(pid, max(start, starts[index]), min(end, ends[index])) for index in range(first, last)]

    def take(self, pid: int, start: int, end: int) -> list[PageRange]:
        """Take the pages of a range out; those that were there, ascending."""
        taken = self.find(pid, start, end)
        if taken:
            first, last = self._overlap(pid, start, end)
            starts, ends = self._starts[pid], self._ends[pid]
            rest = [(low, high) for low, high in ((starts[first], start), (end, ends[last - 1])) if low < high]
            starts[first:last], ends[first:last] = [low for low, _ in rest], [high for _, high in rest]
            self.size -= sum(each.end - each.start for each in taken)
        return taken

    def first(self, pages: int) -> PageRange | None:
        """The first range, of `pages` pages at most; it stays in. None if the set is empty."""
        for pid, starts in self._starts.items():
            if starts:
                return PageRange(pid, starts[0], min(self._ends[pid][0], starts[0] + pages * PAGE_SIZE))
        return None

    def _overlap(self, pid: int, start: int, end: int) -> tuple[int, int]:
        """Which of its ranges, from and to, have pages of this one."""
        first = bisect_right(self._ends.get(pid, []), start)
        return first, max(first, bisect_left(self._starts.get(pid, []), end))
