"""The payload of one DATA frame, from the connection into the arena: spliced, copied or decompressed.

A frame that is cut in the middle comes again, whole; what had come of it leaves no trace.
"""

import trio
import zstandard

from imgcache.arena import Arena, Extent
from imgcache.image import StoredImage
from imgnode.channel import Payload
from imgwire.errors import RemoteProtocolError
from imgwire.frames import MAX_DATA


class Reception:
    """Takes the frames of one session, one after the other."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._unzip = zstandard.ZstdDecompressor()

    async def take(self, payload: Payload, image: StoredImage) -> Extent:
        """Where the frame's bytes of `image` are now. StoreFull, RemoteProtocolError."""
        header = payload.header
        target, whole = self._arena.reserve(header.raw_length, image.heap.last), False
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
                self._arena.unreserve(target)
        return target

    async def _receive_spliced(self, payload: Payload, target: Extent) -> None:
        done, whole = 0, False
        try:
            while payload.left:
                size = await payload.splice(self._arena.pipe)
                await self._arena.fill_from_pipe(target, done, size)
                done += size
            whole = True
        finally:
            if not whole:
                self._arena.reset_pipe()

    async def _receive_bytes(self, payload: Payload, image: StoredImage, target: Extent) -> None:
        parts = []
        done = 0
        while payload.left:
            part = await payload.read()
            await self._arena.fill(target, done, part)
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
        await self._arena.fill(target, 0, data)
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
