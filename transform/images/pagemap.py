"""Pagemap images, made: the extents of a task's memory and which image has the pages. Format: CRIU's pagemap.proto."""

from transform.images.kinds import COMMON_MAGIC, KINDS
from transform.images.proto import memory_pb2

_MAGIC = next(kind.magic for kind in KINDS if kind.name == "pagemap")
_NARROW = 0xFFFFFFFF


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
        self._parts = [COMMON_MAGIC.to_bytes(4, "little") + _MAGIC.to_bytes(4, "little")]
        self._parts.append(_framed(head.SerializeToString()))

    def add(self, address: int, pages: int, flags: int) -> None:
        """The next extent."""
        self._parts.append(encode_extent(address, pages, flags))

    def encode(self) -> bytes:
        """The image."""
        return b"".join(self._parts)


def _framed(raw: bytes) -> bytes:
    return len(raw).to_bytes(4, "little") + raw
