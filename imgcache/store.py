"""The images of one session: append-only while they come in, then sealed, patched, complete.

They come in rounds, each a pre-dump or the dump; once complete, those of the last round, with what they need of the
others, are the checkpoint. An image is a list of extents in the session's arena (or in an archive file); nothing here
touches its bytes. Frames of different images interleave, so an image has an extent per run of frames of its own.

Rounds without a name are read as one checkpoint only, so what the newest one does not need any more is given back when
the next begins: memory holds one checkpoint and what has come of another, not the sum of the rounds. A composed image
may refer to pages that are still needed then, and to those of its own round.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from imgcache.arena import Arena, Extent
from imgcache.extents import Spans
from imgcache.image import Round, StoredImage
from imgcache.reception import Reception
from imgnode.channel import Payload
from imgwire.errors import RemoteProtocolError
from imgwire.frames import Header
from imgwire.messages import PAGE, ZEROES, BeginRound, Compose, DropRound, EndImage, ImagesComplete, OpenImage, Patch
from imgwire.names import is_pages

if TYPE_CHECKING:
    from imgcache.layers import Layer, Layers

#: More images than any dump has: a tree of 10,000 processes has about ten for each.
MAX_IMAGES = 200_000
#: More rounds than make sense; their list of ids still fits what the original client takes.
MAX_ROUNDS = 1000


class ImageStore:
    """All images of a session, by number (as the link calls them) and by name (as CRIU does).

    Iteration, length and names are those of the checkpoint: of the last round, merged with the others once complete.
    """

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.complete = False
        self.variant = ""  #: how a `criu --remote` dump wrote the images, if it did
        self.rounds: list[Round] = []
        self._newest = -1  # number of the round that began last, dropped or not
        self._layers: Layers | None = None
        self.broken = ""  #: a pre-dump failed: its pages, or what it refers to, are not all there; says which
        self._checkpoint: dict[str, StoredImage] = {}
        self._by_number: dict[int, StoredImage] = {}
        self._trimmed = 0  # rounds of which only what is needed is kept
        self._needed = Spans()  # that
        self._patched = Spans()  # what took the place of bytes of those rounds
        self._shared: Spans | None = None  # what stands in the checkpoint more than once, once that is asked
        self.memory: StoredImage | None = None  #: post-copy: pages that follow, in the order in which they come
        self._reception = Reception(arena)

    def __len__(self) -> int:
        return len(self._checkpoint)

    def __iter__(self) -> Iterator[StoredImage]:
        return iter(self._checkpoint.values())

    @property
    def size(self) -> int:
        """Bytes of all images of all rounds so far."""
        return sum(image.size for image in self._all())

    def _all(self) -> Iterator[StoredImage]:
        return (image for one in self.rounds for image in one.images.values())

    def find(self, name: str) -> StoredImage | None:
        """The image of that name."""
        return self._checkpoint.get(name)

    def named(self, name: str) -> StoredImage:
        """The image of that name, which must exist."""
        return self._checkpoint[name]

    @property
    def lineage(self) -> list[Round]:
        """The checkpoint and the rounds that it refers to, by distinct ids, oldest first. Where a pre-dump failed or
        an id was used again, that is the last round alone, merged."""
        ids = [one.snapshot for one in self.rounds]
        if not self.rounds or (len(set(ids)) == len(ids) and not self.broken):
            return self.rounds
        return [Round(self.rounds[-1].number, ids[-1], self._checkpoint)]

    def numbered(self, number: int) -> StoredImage:
        """The image of that number; RemoteProtocolError if it was never opened, or dropped with its round."""
        try:
            return self._by_number[number]
        except KeyError:
            raise RemoteProtocolError(f"image number {number} was never opened, or its round was dropped") from None

    def arrange(self, message: BeginRound | DropRound | OpenImage | Compose) -> None:
        """A round or an image begins or is composed, or a round is dropped."""
        match message:
            case BeginRound():
                self.begin_round(message)
            case DropRound():
                self.drop_round(message)
            case OpenImage():
                self.open(message)
            case Compose():
                self.compose(message)

    def begin_round(self, message: BeginRound) -> None:
        """A pre-dump or the dump begins; what came before is whole."""
        self._check_open()
        if message.round <= self._newest:
            raise RemoteProtocolError(f"round {message.round} after round {self._newest}")
        if len(self.rounds) >= MAX_ROUNDS:
            raise RemoteProtocolError(f"more than {MAX_ROUNDS} rounds")
        if self.rounds:
            self._check_sealed(f"round {message.round} begins")
            self._merge_pre_dump()
            self._release_superseded()
        self.rounds.append(Round(message.round, message.snapshot))
        self._newest = message.round
        self._checkpoint = self.rounds[-1].images

    def drop_round(self, message: DropRound) -> None:
        """The newest round has failed: forget it, and give its memory back. Later ones would refer to it."""
        self._check_open()
        if not self.rounds or not message.round == self.rounds[-1].number == self._newest:
            raise RemoteProtocolError(f"round {message.round} is to be dropped, and is not the one that began last")
        dropped = set(self.rounds.pop().images.values())
        for image in dropped:
            for extent in image.heap:
                self.arena.release(extent)
            image.released = True
        self._by_number = {number: image for number, image in self._by_number.items() if image not in dropped}
        self._checkpoint = self.rounds[-1].images if self.rounds else {}

    def open(self, message: OpenImage) -> None:
        """A new image begins."""
        self._check_open()
        if self._newest < 0 and message.round == 0:
            self.begin_round(BeginRound(0))
        if not self.rounds or not message.round == self.rounds[-1].number == self._newest:
            raise RemoteProtocolError(f"{message.name}: is of round {message.round}, which has not begun or is over")
        images = self.rounds[-1].images
        if message.image in self._by_number or message.name in images:
            raise RemoteProtocolError(f"{message.name} (number {message.image}): opened twice")
        if len(self._by_number) >= MAX_IMAGES:
            raise RemoteProtocolError(f"more than {MAX_IMAGES} images")
        image = StoredImage(message.name, digest=message.digest, composed=message.composed)
        self._by_number[message.image] = images[message.name] = image

    def compose(self, message: Compose) -> None:
        """A composed image goes on; RemoteProtocolError if it refers to what is not there."""
        image = self._unsealed(message.image)
        if not image.composed:
            raise RemoteProtocolError(f"{image.name}: composed, but it was not opened so")
        for number, first, pages in message:
            offset, length = first * PAGE, pages * PAGE
            if number == ZEROES:
                image.compose(self.arena.zeroes(image.size, length))
                continue
            source = self.numbered(number)
            for extent in source.sent(offset, length):
                if not source.composed or (source.released and not self._kept(extent)):
                    raise RemoteProtocolError(f"{image.name}: refers to page {first} of {source.name}, which is gone")
                image.compose(extent)

    def _kept(self, extent: Extent) -> bool:
        """Whether bytes of a round before were not given back."""
        return not self.arena.owns(extent) or self._needed.covers(extent) or self._patched.covers(extent)

    def expect_memory(self, number: int) -> StoredImage:
        """Pages of the process will follow as bytes of that number, which is no image of any round."""
        if self.memory is not None or number in self._by_number:
            raise RemoteProtocolError(f"memory announced as number {number}, which is in use, or announced before")
        self.memory = self._by_number[number] = StoredImage("pages-following.img")
        return self.memory

    def end(self, message: EndImage) -> StoredImage:
        """An image has been sent whole."""
        image = self.numbered(message.image)
        image.seal(message.size, message.digest)
        return image

    def finish(self, message: ImagesComplete) -> None:
        """Nothing changes any more; RemoteProtocolError if something is missing."""
        self._check_sealed("declared complete")
        images = sum(len(one.images) for one in self.rounds)
        if (message.images, message.size) != (images, self.size):
            raise RemoteProtocolError(
                f"declared complete with {message.images} images of {message.size} bytes; "
                f"{images} of {self.size} bytes are here"
            )
        self.variant = message.variant
        if self._newest > 0 or (self.rounds and self.rounds[-1].snapshot):
            self._checkpoint = self._merge_last().checkpoint(self.arena)
            self._keep_only(extent for image in self for extent in image.extents())
        self.complete = True

    @property
    def layers(self) -> "Mapping[str, Layer]":
        """Of a complete set: each pagemap of the dump, merged with the rounds before. RemoteProtocolError."""
        return self._merge_last().by_name

    def release(self, extent: Extent) -> None:
        """These bytes of the checkpoint were read and are not read again. What stands in it twice stays."""
        if self._shared is None:  # not when the set becomes complete: the process stands still then
            composed = any(image.composed for image in self._by_number.values())
            everything = (part for image in self for part in image.extents()) if composed else ()
            self._shared = Spans(everything, shared=True)
        for part in self._shared.without(extent) if self.arena.owns(extent) else ():
            self.arena.release(part)

    def _release_superseded(self) -> None:
        """The newest round is whole: of it and those before only the pages are needed that the next may refer to."""
        if self._keep_only(self._referable()):
            for image in self._all():
                image.released = True

    def _keep_only(self, extents: Iterable[Extent]) -> bool:
        """Give back what else the rounds so far have brought. False where it stays: where the rounds have names, by
        which a restore may ask for each, and after one that failed."""
        if self.broken or any(one.snapshot for one in self.rounds):
            return False
        needed = Spans(map(_whole_pages, filter(self.arena.owns, extents)))
        new = (image for one in self.rounds[self._trimmed :] for image in one.images.values())
        held = [*self._needed, *(extent for image in new for extent in image.heap)]
        for extent in Spans(map(_whole_pages, filter(self.arena.owns, held))):
            for part in needed.without(extent):
                self.arena.release(part)
        self._needed, self._trimmed = needed, len(self.rounds)
        return True

    def _referable(self) -> Iterator[Extent]:
        """What the next round may refer to: the pages of this one, and those that it has of earlier ones."""
        for image in self.rounds[-1].images.values():
            if is_pages(image.name):
                yield from image.extents()
        if self._layers:
            yield from self._layers.extents()

    def _merge_pre_dump(self) -> None:
        """The last round is whole. One that failed is no matter, unless a later one refers to it."""
        try:
            self._merge_last()
        except RemoteProtocolError as error:
            self.broken = str(error)

    def _merge_last(self) -> "Layers":
        """The last round is whole: merge it with those before."""
        from imgcache.layers import Layers  # with pre-dumps only: it is slow to import

        self._layers = self._layers or Layers()
        self._layers.add(self.rounds[-1])
        return self._layers

    def _check_sealed(self, what: str) -> None:
        if opened := [image.name for image in self._all() if not image.sealed]:
            raise RemoteProtocolError(f"{what} with {opened[0]} still open")

    async def receive(self, payload: Payload) -> None:
        """Take a DATA frame's payload. What was taken of it counts only when it is whole."""
        image = self._writable(payload.header)
        image.add(await self._reception.take(payload, image))

    def adopt(self, header: Header, extent: Extent) -> None:
        """A DATA frame's bytes lie in a file already: refer to them there."""
        self._writable(header).add(extent)

    def _writable(self, header: Header) -> StoredImage:
        image = self._unsealed(header.image)
        if header.offset != image.heap.size:
            raise RemoteProtocolError(f"{image.name}: bytes for offset {header.offset} at {image.heap.size}")
        return image

    def _unsealed(self, number: int) -> StoredImage:
        image = self.numbered(number)
        if image is not self.memory:
            self._check_open()
        if image.sealed:
            raise RemoteProtocolError(f"{image.name}: bytes after its end")
        return image

    def patch(self, message: Patch) -> None:
        """Overwrite a range of an image."""
        image = self.readable(message.image, message.offset, len(message.data))
        image.patch(message.offset, message.data, lambda size: self._place(image, size))

    def _place(self, image: StoredImage, size: int) -> Extent:
        """Where to put what takes the place of bytes of `image`."""
        extent = self.arena.reserve(size, None)
        if image.released:
            self._patched = Spans([*self._patched, extent])
        return extent

    def readable(self, number: int, offset: int, length: int) -> StoredImage:
        """The image of that number, to be read or patched in that range; RemoteProtocolError if it cannot be, as what
        of a round before the next could not refer to."""
        image = self.numbered(number)
        if image.released and not all(map(self._kept, image.extents(offset, length))):
            raise RemoteProtocolError(f"{image.name}: its bytes at {offset} are of a round before, and not kept")
        return image

    def _check_open(self) -> None:
        if self.complete:
            raise RemoteProtocolError("image bytes after the set was declared complete")


def _whole_pages(extent: Extent) -> Extent:
    """With the rest of its first and last page, which nobody else has: what is no continuation begins on a page."""
    start = extent.offset // PAGE * PAGE
    end = -(-(extent.offset + extent.length) // PAGE) * PAGE
    return Extent(extent.fd, start, end - start)
