"""One image in the cache, and the images of one round: which bytes of the arena they are. Nothing here moves any.

An image is the bytes that were sent for it, in order; or it is *composed*: what was sent is its heap, pages that nobody
had yet, and the image is a list of pages of its own heap and of others'. So the same page may stand in many places, and
a composed image is never written to: a patch goes into bytes of its own, which take the place of those before.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import xxhash

from imgcache.arena import Extent, pread_all, pwrite_all
from imgcache.extents import Extents
from imgwire.errors import RemoteProtocolError

#: More bytes than any process can address.
MAX_IMAGE = 1 << 56


class StoredImage:
    """One image."""

    def __init__(self, name: str, *, digest: bool = False, composed: bool = False) -> None:
        self.name = name
        self.sealed = False
        self.released = False  #: some of its memory was given back: it cannot be read again
        self.composed = composed
        self.heap = Extents()  #: the bytes that were sent
        self._content = Extents() if composed else self.heap
        self._digest = xxhash.xxh3_128() if digest else None

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self._content.size

    @property
    def digested(self) -> bool:
        """Whether the bytes must pass through user space for their digest."""
        return self._digest is not None

    def add(self, extent: Extent) -> None:
        """The bytes of `extent` follow what was sent."""
        self.heap.add(extent)

    def compose(self, extent: Extent) -> None:
        """The bytes of `extent` follow what the image consists of."""
        if self.size + extent.length > MAX_IMAGE:
            raise RemoteProtocolError(f"{self.name}: composed of more bytes than a process can have")
        self._content.add(extent)

    def update_digest(self, data: bytes) -> None:
        """Count `data` into the digest, if there is one."""
        if self._digest is not None:
            self._digest.update(data)

    def seal(self, size: int, digest: bytes | None) -> None:
        """All bytes have come; RemoteProtocolError if they are not what was sent."""
        if self.sealed:
            raise RemoteProtocolError(f"{self.name}: ended twice")
        if size != self.size:
            raise RemoteProtocolError(f"{self.name}: {size} bytes were sent, {self.size} came")
        if (digest is None) is not (self._digest is None):
            raise RemoteProtocolError(f"{self.name}: a digest was announced or sent, not both")
        if self._digest is not None and self._digest.digest() != digest:
            raise RemoteProtocolError(f"{self.name}: its bytes are not those that were sent (digest differs)")
        self._digest = None
        self.sealed = True

    def extents(self, offset: int = 0, length: int | None = None) -> Iterator[Extent]:
        """The extents of a range of the image, in order; RemoteProtocolError if it is not all there."""
        return self._range(self._content, offset, self.size - offset if length is None else length)

    def sent(self, offset: int, length: int) -> Iterator[Extent]:
        """The extents of a range of what was sent; RemoteProtocolError if it is not all there."""
        return self._range(self.heap, offset, length)

    def _range(self, extents: Extents, offset: int, length: int) -> Iterator[Extent]:
        if not 0 <= offset <= offset + length <= extents.size:
            raise RemoteProtocolError(f"{self.name}: bytes {offset} to {offset + length} of an image of {extents.size}")
        return extents.cut(offset, length)

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range."""
        return b"".join(pread_all(part.fd, part.length, part.offset) for part in self.extents(offset, length))

    def replace(self, extent: Extent) -> None:
        """The sealed image has these bytes instead, of any size."""
        self.heap = self._content = Extents()
        self.heap.add(extent)

    def patch(self, offset: int, data: bytes, reserve: Callable[[int], Extent]) -> None:
        """Overwrite a range. Bytes that may stand elsewhere too are not touched: others, which `reserve` finds a place
        for, take theirs here."""
        if self.composed:
            self.extents(offset, len(data))
            target = reserve(len(data))
            pwrite_all(target.fd, data, target.offset)
            self._content = self._content.replaced(offset, target)
            return
        view = memoryview(data)
        for part in self.extents(offset, len(data)):
            pwrite_all(part.fd, view[: part.length], part.offset)
            view = view[part.length :]


@dataclass(frozen=True)
class Round:
    """The images of one pre-dump, or of the dump."""

    number: int
    snapshot: str = ""  #: what the original `criu --remote` calls it
    images: dict[str, StoredImage] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"round {self.snapshot or self.number}"
