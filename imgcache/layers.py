"""Rounds merged into one complete checkpoint: for a `criu restore` that knows nothing of pre-dumps.

A pagemap of a later round says of each extent of memory where its pages are: in this round, or (`PE_PARENT`) as the
round before has them. What it does not list is gone, whatever an earlier round had. Merging follows each reference to
the round that has the page and makes a new pagemap, all present, and a new image of pages, which is a list of extents
of those that came: no page is copied. Images without such references stay as they are.

Source: CRIU's images/pagemap.proto, and its restore of incremental dumps. With 100,000 extents in each of 3 rounds the
dump takes 1.1 s to merge, while the process is frozen, and the two before it 1 s, while it runs.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from imgcache.arena import Arena, Extent, pwrite_all
from imgcache.image import Round, StoredImage
from imgwire.errors import RemoteProtocolError
from imgwire.names import LAST_IMAGE
from transform.errors import ImageError
from transform.extents import ADDRESS_LIMIT, PAGE_SIZE, PE_PARENT, PE_PRESENT
from transform.images.codec import identify, scan
from transform.images.pagemap import encode_extent
from transform.images.proto import memory_pb2


class MissingPage(Exception):
    """The page at `address` is not in the round that should have it."""

    def __init__(self, address: int) -> None:
        super().__init__(f"no page at {address:#x}")
        self.address = address


class Run(NamedTuple):
    """Pages that lie together: at `start` in memory, at `offset` of `pages`; None for those the source still has."""

    start: int
    length: int
    flags: int
    pages: StoredImage | None
    offset: int


class Layer:
    """One pagemap of one round, merged with the rounds before: runs, ascending, without references.

    As arrays, for big tasks have millions of runs.
    """

    def __init__(self, head: bytes, pages: str) -> None:
        """`head`: what the pagemap begins with, its magic and its first entry; `pages`: the image that it names."""
        self.head, self.pages = head, pages
        self.refers = False  #: to the round before: it was merged
        self.wide = False  #: it counts pages in 64 bits, as since CRIU 4.2
        self._starts, self._lengths, self._offsets = array("Q"), array("Q"), array("Q")
        self._flags = array("B")
        self._images: list[StoredImage | None] = []

    def add(self, start: int, length: int, flags: int, pages: StoredImage | None, offset: int) -> None:
        """A run, which follows all others."""
        if length:
            self._starts.append(start)
            self._lengths.append(length)
            self._flags.append(flags)
            self._images.append(pages)
            self._offsets.append(offset)

    def __iter__(self) -> Iterator[Run]:
        return map(Run, self._starts, self._lengths, self._flags, self._images, self._offsets)

    def cut(self, start: int, length: int) -> Iterator[Run]:
        """The runs of a range of memory, cut to it. MissingPage for the first page that is not there."""
        end = start + length
        index = bisect_right(self._starts, start) - 1
        while start < end:
            pages = self._images[index] if 0 <= index < len(self._images) else None
            skipped = start - self._starts[index] if pages else 0
            if pages is None or not 0 <= skipped < self._lengths[index]:
                raise MissingPage(start)
            size = min(self._lengths[index] - skipped, end - start)
            yield Run(start, size, self._flags[index], pages, self._offsets[index] + skipped)
            start += size
            index += 1


class Layers:
    """The pagemaps of the rounds so far, each merged with the rounds before.

    A round is added when it is whole: those before the dump while the process still runs.
    """

    def __init__(self) -> None:
        self._last: Round | None = None
        self._layers: dict[str, Layer] = {}

    def add(self, one: Round) -> None:
        """The next round; the same again is ignored. RemoteProtocolError if it refers to what is not there: then it has
        no pages for a later one."""
        if one is self._last:
            return
        before, layers = self._last, self._layers
        self._last, self._layers = one, {}
        names = [name for name in one.images if name.startswith("pagemap-")]
        self._layers = {name: _layer(one, name, before, layers.get(name)) for name in names}

    @property
    def by_name(self) -> Mapping[str, Layer]:
        """The merged pagemaps of the last round."""
        return self._layers

    def extents(self) -> Iterator[Extent]:
        """Where the pages of the last round's tasks are, also those of rounds before."""
        for layer in self._layers.values():
            for run in layer:
                if run.pages:
                    yield from run.pages.extents(run.offset, run.length)

    def checkpoint(self, arena: Arena) -> dict[str, StoredImage]:
        """The images of the checkpoint that the rounds make; RemoteProtocolError if the last is no dump."""
        if self._last is None or LAST_IMAGE not in self._last.images:
            raise RemoteProtocolError(f"{self._last}: the dump has no {LAST_IMAGE}: it did not end well; dump again")
        merged = dict(self._last.images)
        for name, layer in self._layers.items():
            if layer.refers:
                merged[layer.pages] = _pages(layer)
                merged[name] = _pagemap(name, layer, arena)
        return merged


def _layer(one: Round, name: str, before: Round | None, parent: Layer | None) -> Layer:
    stored = one.images[name]
    try:
        return _merged(one, name, stored.read(0, stored.size), parent)
    except ImageError as error:
        raise RemoteProtocolError(f"{one}: {error}") from error
    except ValueError as error:
        raise RemoteProtocolError(f"{one}: {name}: {error}") from error
    except MissingPage as error:
        if before is None:
            where = "an earlier round, but this is the first"
        else:
            where = f"{before}, which {'does not have it' if parent else 'has no such image'}"
        raise RemoteProtocolError(f"{one}: {name}: the page at {error.address:#x} is said to be in {where}") from error


def _merged(one: Round, name: str, data: bytes, parent: Layer | None) -> Layer:
    head = next(scan(name, data, memory_pb2.PagemapHead), None)
    if head is None:
        raise ValueError("ends before its first entry")
    start = identify(name, data)[1]
    length = int.from_bytes(data[start : start + 4], "little")
    layer = Layer(data[: start + 4 + length], f"pages-{head.pages_id}.img")
    _fill(layer, scan(name, data, memory_pb2.PagemapEntry), one.images.get(layer.pages), parent)
    return layer


def _fill(
    layer: Layer, entries: Iterator[memory_pb2.PagemapEntry], pages: StoredImage | None, parent: Layer | None
) -> None:
    offset, end, here = 0, 0, pages.size if pages else 0
    for entry in entries:
        start, (length, flags) = entry.vaddr, _extent(entry)
        if start < end or start % PAGE_SIZE or start + length > ADDRESS_LIMIT:
            raise ValueError(f"its extent at {start:#x} is out of order or bounds")
        end = start + length
        layer.wide |= entry.HasField("nr_pages")
        if flags & PE_PARENT:
            layer.refers = True
            if parent is None:
                raise MissingPage(start)
            for run in parent.cut(start, length):
                layer.add(*run)
        elif flags & PE_PRESENT:
            if offset + length > here:
                raise ValueError(f"lists more pages than came: at {start:#x}, {layer.pages} ends after {here} bytes")
            layer.add(start, length, flags, pages, offset)
            offset += length
        else:
            layer.add(start, length, flags, None, 0)


def _extent(entry: memory_pb2.PagemapEntry) -> tuple[int, int]:
    """Bytes, and flags: PE_PRESENT (its pages are here), PE_PARENT (in the round before), else at the source still."""
    length = PAGE_SIZE * (entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages)
    if not entry.HasField("flags"):  # before CRIU 3.0
        return length, PE_PARENT if entry.in_parent else PE_PRESENT
    if entry.flags & PE_PARENT and entry.flags & PE_PRESENT:
        raise ValueError(f"its extent at {entry.vaddr:#x} is said to be both here and in the round before")
    return length, entry.flags


def _pages(layer: Layer) -> StoredImage:
    """The pages that the merged pagemap lists, where they are."""
    image = StoredImage(layer.pages)
    for run in layer:
        if run.pages:
            for extent in run.pages.extents(run.offset, run.length):
                image.add(extent)
    image.seal(image.size, None)
    return image


def _pagemap(name: str, layer: Layer, arena: Arena) -> StoredImage:
    """The merged pagemap as an image of its own."""
    data = layer.head + b"".join(
        encode_extent(run.start, run.length // PAGE_SIZE, run.flags, wide=layer.wide) for run in layer
    )
    return new_image(name, data, arena)


def new_image(name: str, data: bytes, arena: Arena) -> StoredImage:
    """An image that no source has sent."""
    extent = arena.reserve(len(data), None)
    pwrite_all(extent.fd, data, extent.offset)
    image = StoredImage(name)
    image.add(extent)
    image.seal(len(data), None)
    return image
