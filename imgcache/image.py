"""One image in the cache, and the images of one round: which bytes of the arena they are. Nothing here moves any."""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field

import xxhash

from imgcache.arena import Extent, pread_all, pwrite_all
from imgwire.errors import RemoteProtocolError


class StoredImage:
    """One image."""

    def __init__(self, name: str, *, digest: bool = False) -> None:
        self.name = name
        self.size = 0
        self.sealed = False
        self.released = False  #: some of its memory was given back: it cannot be read again
        self._extents: list[Extent] = []
        self._starts: list[int] = []
        self._digest = xxhash.xxh3_128() if digest else None

    @property
    def digested(self) -> bool:
        """Whether the bytes must pass through user space for their digest."""
        return self._digest is not None

    @property
    def last_extent(self) -> Extent | None:
        """The extent that the next bytes may continue."""
        return self._extents[-1] if self._extents else None

    def add(self, extent: Extent) -> None:
        """The bytes of `extent` follow what the image has."""
        last = self.last_extent
        if last and (last.fd, last.offset + last.length) == (extent.fd, extent.offset):
            self._extents[-1] = Extent(last.fd, last.offset, last.length + extent.length)
        else:
            self._extents.append(extent)
            self._starts.append(self.size)
        self.size += extent.length

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
        end = self.size if length is None else offset + length
        if not 0 <= offset <= end <= self.size:
            raise RemoteProtocolError(f"{self.name}: bytes {offset} to {end} of an image of {self.size}")
        index = bisect_right(self._starts, offset) - 1
        while offset < end:
            extent, start = self._extents[index], self._starts[index]
            size = min(extent.length - (offset - start), end - offset)
            yield Extent(extent.fd, extent.offset + offset - start, size)
            offset += size
            index += 1

    def read(self, offset: int, length: int) -> bytes:
        """The bytes of a range."""
        return b"".join(pread_all(part.fd, part.length, part.offset) for part in self.extents(offset, length))

    def replace(self, extent: Extent) -> None:
        """The sealed image has these bytes instead, of any size."""
        self._extents, self._starts, self.size = [extent], [0], extent.length

    def patch(self, offset: int, data: bytes) -> None:
        """Overwrite a range."""
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
