"""Lists of extents, and sets of what they cover. Arrays, for an image that is composed page by page has millions.

`Extents` is an order of bytes: what an image consists of, wherever it lies. `Spans` is a set of bytes: what is still
needed, what is needed twice. Nothing here moves a byte.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from imgcache.arena import Extent


class Extents:
    """Extents one after the other; neighbours that continue each other are one. `size`: bytes of all."""

    def __init__(self) -> None:
        self.size = 0
        self._fds, self._offsets, self._starts = array("i"), array("Q"), array("Q")

    def __len__(self) -> int:
        return len(self._fds)

    def __iter__(self) -> Iterator[Extent]:
        return self.cut(0, self.size)

    @property
    def last(self) -> Extent | None:
        """The last one."""
        return self._extent(len(self._fds) - 1) if self._fds else None

    def add(self, extent: Extent) -> None:
        """`extent` follows."""
        if not extent.length:
            return
        if not self._fds or (self._fds[-1], self._offsets[-1] + self.size - self._starts[-1]) != (
            extent.fd,
            extent.offset,
        ):
            self._fds.append(extent.fd)
            self._offsets.append(extent.offset)
            self._starts.append(self.size)
        self.size += extent.length

    def cut(self, offset: int, length: int) -> Iterator[Extent]:
        """The extents of a range, in order. The range must be there."""
        end = offset + length
        index = bisect_right(self._starts, offset) - 1
        while offset < end:
            extent, skipped = self._extent(index), offset - self._starts[index]
            size = min(extent.length - skipped, end - offset)
            yield Extent(extent.fd, extent.offset + skipped, size)
            offset += size
            index += 1

    def replaced(self, offset: int, extent: Extent) -> "Extents":
        """The same list with `extent` where `offset` is, in place of as many bytes."""
        changed, end = Extents(), offset + extent.length
        for part in (self.cut(0, offset), [extent], self.cut(end, self.size - end)):
            for one in part:
                changed.add(one)
        return changed

    def _extent(self, index: int) -> Extent:
        start = self._starts[index]
        end = self._starts[index + 1] if index + 1 < len(self._starts) else self.size
        return Extent(self._fds[index], self._offsets[index], end - start)


class Spans:
    """A set of bytes of files, made of extents that may overlap. `shared`: only of what at least two of them have."""

    def __init__(self, extents: Iterable[Extent] = (), *, shared: bool = False) -> None:
        self._starts: dict[int, array[int]] = {}
        self._ends: dict[int, array[int]] = {}
        for fd, start, end in _overlaps(extents) if shared else _ordered(extents):
            self._add(fd, start, end)

    def __iter__(self) -> Iterator[Extent]:
        for fd, starts in self._starts.items():
            for start, end in zip(starts, self._ends[fd], strict=True):
                yield Extent(fd, start, end - start)

    def covers(self, extent: Extent) -> bool:
        """Whether all of it is in the set."""
        index = bisect_right(self._starts.get(extent.fd, ()), extent.offset) - 1
        return index >= 0 and extent.offset + extent.length <= self._ends[extent.fd][index]

    def without(self, extent: Extent) -> Iterator[Extent]:
        """What of `extent` is not in the set."""
        starts, ends = self._starts.get(extent.fd, ()), self._ends.get(extent.fd, ())
        offset, end = extent.offset, extent.offset + extent.length
        index = max(bisect_right(starts, offset) - 1, 0)
        while offset < end:
            if index < len(starts) and ends[index] <= offset:
                index += 1
                continue
            until = min(starts[index], end) if index < len(starts) else end
            if offset < until:
                yield Extent(extent.fd, offset, until - offset)
            offset = ends[index] if index < len(starts) else end
            index += 1

    def _add(self, fd: int, start: int, end: int) -> None:
        """In ascending order."""
        starts, ends = self._starts.setdefault(fd, array("Q")), self._ends.setdefault(fd, array("Q"))
        if ends and start <= ends[-1]:
            ends[-1] = max(ends[-1], end)
        else:
            starts.append(start)
            ends.append(end)


def _ordered(extents: Iterable[Extent]) -> list[tuple[int, int, int]]:
    return sorted((one.fd, one.offset, one.offset + one.length) for one in extents)


def _overlaps(extents: Iterable[Extent]) -> Iterator[tuple[int, int, int]]:
    """What each has in common with those that begin before it."""
    last, reach = -1, 0
    for fd, start, end in _ordered(extents):
        if fd == last and start < reach:
            yield fd, start, min(end, reach)
        reach = end if fd != last else max(reach, end)
        last = fd
