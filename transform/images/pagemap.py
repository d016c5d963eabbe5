"""Pagemap images: the extents of a task's memory and which image has the pages. Format: CRIU's pagemap.proto."""

import re
from collections.abc import Iterator
from itertools import chain

from transform.images.codec import scan
from transform.images.kinds import COMMON_MAGIC, KINDS
from transform.images.proto import memory_pb2

_MAGIC = next(kind.magic for kind in KINDS if kind.name == "pagemap")
_HEADER = COMMON_MAGIC.to_bytes(4, "little") + _MAGIC.to_bytes(4, "little")
_NARROW = 0xFFFFFFFF
_PAGE_SIZE = 4096
_PARENT, _LAZY, _PRESENT = 1, 2, 4  # PE_* of CRIU's pagemap.h
_OF_TASK = re.compile(r"pagemap-(\d+)\.img")


def encode_extent(address: int, pages: int, flags: int, *, wide: bool = False) -> bytes:
    """An extent, framed. `flags` as in the image; `wide`: with the count in 64 bits too, as since CRIU 4.2."""
    entry = memory_pb2.PagemapEntry(vaddr=address, compat_nr_pages=min(pages, _NARROW), flags=flags)
    if wide or pages > _NARROW:
        entry.nr_pages = pages
    return _framed(entry.SerializeToString())


class PagemapWriter:
    """A pagemap image that grows extent by extent, in ascending order."""

    def __init__(self, pages_id: int) -> None:
        """`pages_id`: N of the image pages-N.img that has the pages."""
        head = memory_pb2.PagemapHead(pages_id=pages_id)
        self._parts = [_HEADER]
        self._parts.append(_framed(head.SerializeToString()))

    def add(self, address: int, pages: int, flags: int) -> None:
        """The next extent."""
        self._parts.append(encode_extent(address, pages, flags))

    def encode(self) -> bytes:
        """The image."""
        return b"".join(self._parts)


def task_of(name: str) -> int | None:
    """Whose pagemap the image is, by its name: a pid in the tree's own namespace. None if it is no task's pagemap."""
    found = _OF_TASK.fullmatch(name)
    return int(found[1]) if found else None


def is_wide(name: str, data: bytes) -> bool:
    """Whether the pagemap counts pages in 64 bits, too, as CRIU does since 4.2."""
    return any(entry.HasField("nr_pages") for entry in scan(name, data, memory_pb2.PagemapEntry))


def for_old_readers(name: str, data: bytes) -> bytes:
    """The pagemap with each count of pages in the field of old, too, where CRIU since 4.2 leaves a zero. ImageError.

    To CRIU before 4.2 that zero is the count: it restores the process without any of its memory, and says nothing.
    """
    if not is_wide(name, data):
        return data
    messages = scan(name, data, memory_pb2.PagemapHead), map(_counted, scan(name, data, memory_pb2.PagemapEntry))
    return _HEADER + b"".join(_framed(message.SerializeToString()) for message in chain(*messages))


def _counted(entry: memory_pb2.PagemapEntry) -> memory_pb2.PagemapEntry:
    if entry.HasField("nr_pages"):
        entry.compat_nr_pages = min(entry.nr_pages, _NARROW)
    return entry


def extents_at_source(name: str, data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end address of each extent whose pages `criu dump --lazy-pages` has kept. ImageError."""
    for entry in scan(name, data, memory_pb2.PagemapEntry):
        if entry.flags & _LAZY and not entry.flags & (_PARENT | _PRESENT):
            pages = entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages
            yield entry.vaddr, entry.vaddr + pages * _PAGE_SIZE


def _framed(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "little") + raw
