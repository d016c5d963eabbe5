"""Rounds merged into one complete checkpoint: for a `criu restore` that knows nothing of pre-dumps.

A pagemap of a later round says of each extent of memory where its pages are: in this round, or (`PE_PARENT`) as the
round before has them. What it does not list is gone, whatever an earlier round had. Merging follows each reference to
the round that has the page and makes a new pagemap, all present, and a new image of pages, which is a list of extents
of those that came: no page is copied. Images without such references stay as they are.

Source: CRIU's images/pagemap.proto, and its restore of incremental dumps.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from imgcache.arena import Arena, pwrite_all
from imgcache.image import Round, StoredImage
from imgwire.errors import RemoteProtocolError
from transform.errors import ImageError
from transform.images.codec import Entry, Image, decode
from transform.images.proto import memory_pb2
from transform.memory import PAGE_SIZE, PE_LAZY, PE_PARENT, PE_PRESENT

#: The last image of every dump: without it there is none.
LAST_IMAGE = "inventory.img"


@dataclass(frozen=True)
class Run:
    """Pages that lie together: at `start` in memory, at `offset` of `pages`."""

    start: int
    length: int
    flags: int
    pages: StoredImage
    offset: int


class Layer:
    """One pagemap of one round, merged with the rounds before: runs, ascending, without references."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._starts = array("Q", (run.start for run in runs))

    def cut(self, start: int, length: int) -> Iterator[Run]:
        """The runs of a range of memory, cut to it. LookupError with the address of a page that is not there."""
        end = start + length
        index = bisect_right(self._starts, start) - 1
        while start < end:
            run = self.runs[index] if 0 <= index < len(self.runs) else None
            if run is None or not run.start <= start < run.start + run.length:
                raise LookupError(start)
            size = min(run.start + run.length, end) - start
            yield Run(start, size, run.flags, run.pages, run.offset + start - run.start)
            start += size
            index += 1


def merge(rounds: Sequence[Round], arena: Arena) -> dict[str, StoredImage]:
    """The images of the checkpoint that the rounds make. RemoteProtocolError if one refers to what is not there."""
    if LAST_IMAGE not in rounds[-1].images:
        raise RemoteProtocolError(f"the dump has no {LAST_IMAGE}: it did not end well")
    layers: dict[str, Layer] = {}
    for one in rounds[:-1]:
        layers = {name: _layer(one, name, layers.get(name))[1] for name in one.images if name.startswith("pagemap-")}
    merged = dict(rounds[-1].images)
    for name in [name for name in merged if name.startswith("pagemap-")]:
        image, layer = _layer(rounds[-1], name, layers.get(name))
        if any(_residence(entry) == PE_PARENT for entry in image.messages(memory_pb2.PagemapEntry)):
            _flatten(image, layer, merged, arena)
    return merged


def _layer(one: Round, name: str, parent: Layer | None) -> tuple[Image, Layer]:
    stored = one.images[name]
    try:
        image = decode(name, stored.read(0, stored.size))
        (head,) = image.messages(memory_pb2.PagemapHead)
        return image, Layer(list(_runs(image, one.images.get(_pages(head)), parent)))
    except (ImageError, ValueError) as error:
        raise RemoteProtocolError(f"round {one.snapshot or one.number}: {name}: {error}") from error
    except LookupError as error:
        at = f"{error.args[0]:#x}"
        raise RemoteProtocolError(
            f"round {one.snapshot or one.number}: {name}: the page at {at} is said to be in the round before, "
            "which does not have it"
        ) from error


def _pages(head: memory_pb2.PagemapHead) -> str:
    return f"pages-{head.pages_id}.img"


def _runs(image: Image, pages: StoredImage | None, parent: Layer | None) -> Iterator[Run]:
    offset = 0
    for entry in image.messages(memory_pb2.PagemapEntry):
        length = PAGE_SIZE * (entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages)
        residence = _residence(entry)
        if residence == PE_PARENT:
            if parent is None:
                raise LookupError(entry.vaddr)
            yield from parent.cut(entry.vaddr, length)
        elif residence == PE_PRESENT:
            if pages is None or offset + length > pages.size:
                raise ValueError(f"lists pages of which {offset + length} bytes did not come")
            yield Run(entry.vaddr, length, entry.flags or PE_PRESENT, pages, offset)
            offset += length


def _residence(entry: memory_pb2.PagemapEntry) -> int:
    """Where the pages of an extent are: PE_PRESENT (here), PE_PARENT (in the round before), PE_LAZY (not yet)."""
    if not entry.HasField("flags"):  # before CRIU 3.0
        return PE_PARENT if entry.in_parent else PE_PRESENT
    if entry.flags & PE_PRESENT:
        return PE_PRESENT
    return PE_PARENT if entry.flags & PE_PARENT else PE_LAZY


def _flatten(image: Image, layer: Layer, merged: dict[str, StoredImage], arena: Arena) -> None:
    """Put a pagemap without references, and the pages that it lists, into `merged`."""
    (head,) = image.messages(memory_pb2.PagemapHead)
    pages = StoredImage(_pages(head))
    for run in layer.runs:
        for extent in run.pages.extents(run.offset, run.length):
            pages.add(extent)
    pages.seal(pages.size, None)
    wide = any(entry.HasField("nr_pages") for entry in image.messages(memory_pb2.PagemapEntry))
    image.entries[1:] = [Entry(_entry(run, wide)) for run in layer.runs]
    merged[pages.name] = pages
    merged[image.name] = _stored(image.name, image.encode(), arena)


def _entry(run: Run, wide: bool) -> memory_pb2.PagemapEntry:
    count = run.length // PAGE_SIZE
    entry = memory_pb2.PagemapEntry(vaddr=run.start, compat_nr_pages=min(count, 0xFFFFFFFF), flags=run.flags)
    if wide:  # as since CRIU 4.2
        entry.nr_pages = count
    return entry


def _stored(name: str, data: bytes, arena: Arena) -> StoredImage:
    extent = arena.reserve(len(data), None)
    pwrite_all(extent.fd, data, extent.offset)
    stored = StoredImage(name)
    stored.add(extent)
    stored.seal(len(data), None)
    return stored
