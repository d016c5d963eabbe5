"""The images of one session: append-only while they come in, then sealed, patched, complete.

An image is a list of extents in the session's arena (or in an archive file); nothing here touches its bytes. Frames of
different images interleave, so an image has an extent per run of frames of its own.
"""

from bisect import bisect_right
from collections.abc import Iterator

import trio
import xxhash
import zstandard

from imgcache.arena import Arena, Extent, pread_all, pwrite_all
from imgnode.channel import Payload
from imgwire.errors import RemoteProtocolError
from imgwire.frames import MAX_DATA, Header
from imgwire.messages import EndImage, ImagesComplete, OpenImage

#: More images than any dump has: a tree of 10,000 processes has about ten for each.
MAX_IMAGES = 200_000


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


class ImageStore:
    """All images of a session, by number (as the link calls them) and by name (as CRIU does)."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.complete = False
        self._by_number: dict[int, StoredImage] = {}
        self._by_name: dict[str, StoredImage] = {}
        self._unzip = zstandard.ZstdDecompressor()

    def __len__(self) -> int:
        return len(self._by_name)

    def __iter__(self) -> Iterator[StoredImage]:
        return iter(self._by_name.values())

    @property
    def size(self) -> int:
        """Bytes of all images so far."""
        return sum(image.size for image in self)

    def find(self, name: str) -> StoredImage | None:
        """The image of that name."""
        return self._by_name.get(name)

    def named(self, name: str) -> StoredImage:
        """The image of that name, which must exist."""
        return self._by_name[name]

    def numbered(self, number: int) -> StoredImage:
        """The image of that number; RemoteProtocolError if it was never opened."""
        try:
            return self._by_number[number]
        except KeyError:
            raise RemoteProtocolError(f"image number {number} was never opened") from None

    def open(self, message: OpenImage) -> None:
        """A new image begins."""
        self._check_open()
        if message.image in self._by_number or message.name in self._by_name:
            raise RemoteProtocolError(f"{message.name} (number {message.image}): opened twice")
        if len(self) >= MAX_IMAGES:
            raise RemoteProtocolError(f"more than {MAX_IMAGES} images")
        image = StoredImage(message.name, digest=message.digest)
        self._by_number[message.image] = self._by_name[message.name] = image

    def end(self, message: EndImage) -> StoredImage:
        """An image has been sent whole."""
        image = self.numbered(message.image)
        image.seal(message.size, message.digest)
        return image

    def finish(self, message: ImagesComplete) -> None:
        """Nothing changes any more; RemoteProtocolError if something is missing."""
        open_images = [image.name for image in self if not image.sealed]
        if open_images:
            raise RemoteProtocolError(f"declared complete with {open_images[0]} still open")
        if (message.images, message.size) != (len(self), self.size):
            raise RemoteProtocolError(
                f"declared complete with {message.images} images of {message.size} bytes; "
                f"{len(self)} of {self.size} bytes are here"
            )
        self.complete = True

    async def receive(self, payload: Payload) -> None:
        """Take a DATA frame's payload. What was taken of it counts only when it is whole."""
        header = payload.header
        image = self._writable(header)
        target, whole = self.arena.reserve(header.raw_length, image.last_extent), False
        try:
            if header.compressed:
                await self._receive_zstd(payload, image, target)
            elif payload.splices and not image.digested:
                await self._receive_spliced(payload, target)
            else:
                await self._receive_bytes(payload, image, target)
            whole = True
        finally:
            if not whole:
                self.arena.unreserve(target)
        image.add(target)

    def adopt(self, header: Header, extent: Extent) -> None:
        """A DATA frame's bytes lie in a file already: refer to them there."""
        self._writable(header).add(extent)

    async def _receive_spliced(self, payload: Payload, target: Extent) -> None:
        done, whole = 0, False
        try:
            while payload.left:
                size = await payload.splice(self.arena.pipe)
                await self.arena.fill_from_pipe(target, done, size)
                done += size
            whole = True
        finally:
            if not whole:
                self.arena.reset_pipe()

    async def _receive_bytes(self, payload: Payload, image: StoredImage, target: Extent) -> None:
        parts = []
        done = 0
        while payload.left:
            part = await payload.read()
            await self.arena.fill(target, done, part)
            done += len(part)
            if image.digested:
                parts.append(part)
        for part in parts:  # only now: a frame that was cut comes again, whole
            image.update_digest(part)

    async def _receive_zstd(self, payload: Payload, image: StoredImage, target: Extent) -> None:
        parts = []
        while payload.left:
            parts.append(await payload.read())
        data = await trio.to_thread.run_sync(self._decompress, b"".join(parts), payload.header.raw_length)
        await self.arena.fill(target, 0, data)
        image.update_digest(data)

    def _decompress(self, data: bytes, size: int) -> bytes:
        try:
            # The output is bounded by what the header says (MAX_DATA at most), whatever the frame claims.
            if zstandard.frame_content_size(data) != size:
                raise RemoteProtocolError("a zstd frame that does not hold what its header says")
            raw = self._unzip.decompress(data, max_output_size=MAX_DATA)
        except zstandard.ZstdError as error:
            raise RemoteProtocolError(f"a zstd frame that cannot be decompressed: {error}") from error
        if len(raw) != size:
            raise RemoteProtocolError(f"a zstd frame of {len(raw)} bytes where {size} were announced")
        return raw

    def _writable(self, header: Header) -> StoredImage:
        self._check_open()
        image = self.numbered(header.image)
        if image.sealed:
            raise RemoteProtocolError(f"{image.name}: bytes after its end")
        if header.offset != image.size:
            raise RemoteProtocolError(f"{image.name}: bytes for offset {header.offset} at {image.size}")
        return image

    def _check_open(self) -> None:
        if self.complete:
            raise RemoteProtocolError("image bytes after the set was declared complete")
