"""What a pagemap image says: the extents of the memory of a task or of a shared segment, and where their pages are.

A task of 4 GiB has ten thousand extents, one with every other page touched has millions, and each takes microseconds to
be read: so an image is read once, when it comes, into arrays that answer by bisection.
Format: CRIU's images/pagemap.proto and criu/include/pagemap.h.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from enum import IntEnum

from transform.errors import ImageError
from transform.images.codec import identify, scan
from transform.images.proto import memory_pb2

PAGE_SIZE = 4096
"""Bytes, for a task whose auxiliary vector does not tell (x86-64 has no other)."""
ADDRESS_LIMIT = 2**64 - 1
PE_PARENT, PE_LAZY, PE_PRESENT = 1, 2, 4


class Residence(IntEnum):
    """Where the pages of an extent are."""

    PRESENT = 0
    PARENT = 1
    LAZY = 2


class Pagemap:
    """The extents of one pagemap image: ascending, each with its place in the pages image."""

    def __init__(self, name: str, data: bytes, page_size: int = PAGE_SIZE) -> None:
        """Raises `ImageError` for extents out of order or outside of the address space."""
        head = next(scan(name, data, memory_pb2.PagemapHead), None)
        if head is None:
            raise ImageError(name, len(data), "a pagemap without a head")
        self.name, self.data = name, data
        self.pages = f"pages-{head.pages_id}.img"
        self._page_size = page_size
        self._starts, self._ends, self._offsets = array("Q"), array("Q"), array("Q")
        self._residence = array("B")
        self._collect()

    def _collect(self) -> None:
        offset, last, page_size = 0, 0, self._page_size
        for index, entry in enumerate(scan(self.name, self.data, memory_pb2.PagemapEntry)):
            length = page_size * (entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages)
            end = entry.vaddr + length
            if entry.vaddr < last or entry.vaddr % page_size or end > ADDRESS_LIMIT:
                raise ImageError(self.name, 0, f"extent {index} at {entry.vaddr:#x} is out of order or bounds")
            residence = _residence(entry)
            self._starts.append(entry.vaddr)
            self._ends.append(end)
            self._offsets.append(offset)
            self._residence.append(residence)
            offset += length if residence is Residence.PRESENT else 0
            last = end

    def in_pages_of(self, page_size: int) -> "Pagemap":
        """The same of a task whose pages have so many bytes. ImageError."""
        return self if page_size == self._page_size else Pagemap(self.name, self.data, page_size)

    def locate(self, address: int) -> tuple[Residence | None, int, int]:
        """Residence of the page at `address`, its offset in the pages image, and where the extent ends.

        In a hole the residence is None and the end is where the next extent begins.
        """
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._ends[index]:
            offset = self._offsets[index] + address - self._starts[index]
            return Residence(self._residence[index]), offset, self._ends[index]
        end = self._starts[index + 1] if index + 1 < len(self._starts) else ADDRESS_LIMIT
        return None, 0, end

    def overlaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """What of `start` to `end` is in extents, wherever their pages are: a range for each."""
        for index in range(bisect_right(self._ends, start), bisect_left(self._starts, end)):
            yield max(self._starts[index], start), min(self._ends[index], end)

    def below(self, limit: int) -> bytes:
        """The image without the extents from the address `limit` on. ImageError if one is on both sides of it."""
        count = bisect_left(self._starts, limit)
        if count and self._ends[count - 1] > limit:
            reason = f"an extent at {self._starts[count - 1]:#x} reaches beyond {limit:#x}"
            raise ImageError(self.name, 0, reason)
        if count == len(self._starts):
            return self.data
        _, end = identify(self.name, self.data)
        for _ in range(1 + count):  # the head is an entry, too
            end += 4 + int.from_bytes(self.data[end : end + 4], "little")
        return self.data[:end]


def _residence(entry: memory_pb2.PagemapEntry) -> Residence:
    if not entry.HasField("flags"):
        return Residence.PARENT if entry.in_parent else Residence.PRESENT
    if entry.flags & PE_PRESENT:
        return Residence.PRESENT
    return Residence.PARENT if entry.flags & PE_PARENT else Residence.LAZY
