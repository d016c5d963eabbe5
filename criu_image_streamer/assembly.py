"""Puts a checkpoint together from its shards: frames come in any order, what they make is checked as a whole.

Frames are only noted as they come; their bytes lie in the arena, or in the shard if that is a file. Once every shard
has ended, the frames of each image are put in order of their offsets and given to the store, which refuses gaps,
overlaps, missing ends and wrong totals as it would on the link. So what is kept is one note per frame, nothing is
copied, and no shard ever waits for another.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from criu_image_streamer.descriptors import ShardSource
from criu_image_streamer.external import ExternalOutput
from imgcache.arena import Arena, Extent, pread_all
from imgcache.store import MAX_IMAGES, ImageStore
from imgwire.errors import RemoteProtocolError
from imgwire.frames import Header
from imgwire.messages import EndImage, ImagesComplete, OpenImage


@dataclass
class _Noted:
    """What is known of an image so far."""

    opened: OpenImage
    ended: EndImage | None = None
    frames: list[tuple[Header, Extent]] = field(default_factory=list)
    external: ExternalOutput | None = None


class Assembly:
    """The images of one checkpoint while its shards are read."""

    def __init__(self, arena: Arena, external: Mapping[str, ExternalOutput]) -> None:
        self._arena, self._external = arena, external
        self._images: dict[int, _Noted] = {}
        self._totals: ImagesComplete | None = None

    def open(self, message: OpenImage) -> None:
        """A shard has an image; several may have the same."""
        if message.composed:
            raise RemoteProtocolError("its pages are composed of each other: it is an archive for imgcache --from")
        known = self._images.get(message.image)
        if known is None:
            if len(self._images) >= MAX_IMAGES:
                raise RemoteProtocolError(f"more than {MAX_IMAGES} images")
            self._images[message.image] = _Noted(message, external=self._external.get(message.name))
        elif known.opened != message:
            raise RemoteProtocolError(f"image {message.image} is {message.name} here and {known.opened.name} elsewhere")

    def end(self, message: EndImage) -> None:
        """An image has its size and digest."""
        image = self._numbered(message.image)
        if image.ended is not None:
            raise RemoteProtocolError(f"{image.opened.name}: ended twice")
        image.ended = message
        if image.external is not None:
            image.external.end(message)

    def complete(self, message: ImagesComplete) -> None:
        """A shard tells the totals of the checkpoint; all must tell the same."""
        if self._totals not in (None, message):
            raise RemoteProtocolError("its totals differ from another shard's")
        self._totals = message

    async def data(self, header: Header, source: ShardSource) -> None:
        """Take a frame's payload from its shard."""
        image = self._numbered(header.image)
        if header.compressed:
            raise RemoteProtocolError("its pages are compressed: it is an archive for imgcache --from")
        if image.external is not None:
            await image.external.admit(header.offset)
        extent = await source.take(header.length, self._arena)
        if image.external is not None:
            image.external.put(header.offset, extent, source)
        else:
            image.frames.append((header, extent))

    def store(self) -> ImageStore:
        """All images, checked; RemoteProtocolError for what is missing or wrong."""
        self._check_totals()
        store = ImageStore(self._arena)
        for image in self._images.values():
            if image.external is None:
                _fill(store, image)
        return store

    def _check_totals(self) -> None:
        size = 0
        for image in self._images.values():
            if image.ended is None:
                raise RemoteProtocolError(f"{image.opened.name}: its end is missing")
            size += image.ended.size
        totals = self._totals
        assert totals is not None, "every shard ends with them"
        if (totals.images, totals.size) != (len(self._images), size):
            raise RemoteProtocolError(
                f"{totals.images} images of {totals.size} bytes were captured, "
                f"{len(self._images)} of {size} bytes are here"
            )
        missing = set(self._external) - {image.opened.name for image in self._images.values()}
        if missing:
            raise RemoteProtocolError(f"external file {min(missing)}: is not in this checkpoint")

    def _numbered(self, number: int) -> _Noted:
        try:
            return self._images[number]
        except KeyError:
            raise RemoteProtocolError(f"image number {number} was never opened in this shard") from None


def _fill(store: ImageStore, noted: _Noted) -> None:
    assert noted.ended is not None
    store.open(noted.opened)
    image = store.numbered(noted.opened.image)
    for header, extent in sorted(noted.frames, key=lambda frame: frame[0].offset):
        store.adopt(header, extent)
        if image.digested:
            image.update_digest(pread_all(extent.fd, extent.length, extent.offset))
    store.end(noted.ended)
