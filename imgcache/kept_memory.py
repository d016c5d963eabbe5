"""A lazy restore of a checkpoint that is all here: which pages CRIU leaves out, and where they are when it asks.

`criu restore --lazy-pages` leaves out what a pagemap calls lazy, and lets the process run and wait, page by page, for
`criu lazy-pages`. So that no page is read while it stands still, each pagemap is served rewritten, as a `criu dump
--lazy-pages` would have made it: what may follow is lazy and not present, and not in the pages image, which is read
from a pipe and cannot be skipped. What may follow is told by the mappings as the dump has them, not by the marks that
a round before put at its pages: a mapping may have been locked since. The images stay as they are for others to read.

CRIU has the page of a stack pointer present, for it is wanted at once. Here it follows, too: as no mapping that waits
for pages has one before, none gets a huge page instead, zeroes around it, which would pass for its neighbours.

Source: CRIU's criu/mem.c, criu/pagemap.c, criu/uffd.c, and its rule of what can be lazy in criu/include/vma.h.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from imgcache.arena import Extent
from imgcache.image import StoredImage
from imgcache.layers import Layer, MissingPage, Run, new_image
from imgcache.store import ImageStore
from imgwire.errors import RemoteProtocolError
from imgwire.page_server_messages import PAGE_SIZE
from transform.errors import ImageError
from transform.extents import PE_LAZY, PE_PRESENT
from transform.images.codec import decode
from transform.images.pagemap import encode_extent, task_of
from transform.images.proto import memory_pb2
from transform.memory import VMA_VSYSCALL, VMA_VVAR

_VMA_VDSO = 1 << 3
_MAP_PRIVATE, _MAP_ANONYMOUS, _MAP_HUGETLB = 0x02, 0x20, 0x40000
_MAP_LOCKED = 0x2000 | 0x80  # the second on POWER; nowhere else does CRIU write it

#: Behind the last range: no address is as high.
_NO_RANGE = (1 << 64, 1 << 65)


class Part(NamedTuple):
    """Part of a run, within one mapping or beside them; `lazy`: its pages may follow."""

    start: int
    length: int
    lazy: bool
    run: Run


class LazyImages:
    """The images of a checkpoint, but for pages that may follow the process."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._changed: dict[str, StoredImage] = {}

    def __iter__(self) -> Iterator[StoredImage]:
        return (self._changed.get(image.name, image) for image in self._store)

    def find(self, name: str) -> StoredImage | None:
        """The image of that name."""
        return self._changed.get(name) or self._store.find(name)

    def named(self, name: str) -> StoredImage:
        """The image of that name, which must exist."""
        return self._changed.get(name) or self._store.named(name)

    def release(self, _extent: Extent) -> None:
        """Nothing is given back: the same page may be asked for again, as one that follows."""

    def rewrite(self, name: str, layer: Layer) -> int:
        """From now on pagemap and pages of one task are those of a lazy restore. How many bytes follow it.

        RemoteProtocolError if the images do not fit each other.
        """
        pages, entries, total = StoredImage(layer.pages), [layer.head], 0
        for start, end, lazy in _joined(parts(_present(name, layer), self._ranges(name)), pages):
            flags = PE_LAZY if lazy else PE_PRESENT
            entries.append(encode_extent(start, (end - start) // PAGE_SIZE, flags, wide=layer.wide))
            total += end - start if lazy else 0
        pages.seal(pages.size, None)
        self._changed[layer.pages] = pages
        self._changed[name] = new_image(name, b"".join(entries), self._store.arena)
        return total

    def _ranges(self, pagemap: str) -> list[tuple[int, int]]:
        name = f"mm-{task_of(pagemap)}.img"
        mm = self._store.find(name)
        if mm is None:
            raise RemoteProtocolError(f"{pagemap} came without {name}")
        try:
            return list(lazy_ranges(name, mm.read(0, mm.size)))
        except ImageError as error:
            raise RemoteProtocolError(str(error)) from error


class KeptMemory:
    """The pages that follow in one lazy restore. All are here, once `expect` has been told that all images are."""

    def __init__(self, store: ImageStore) -> None:
        self.images = LazyImages(store)  #: what the restore reads
        self._store = store
        self._layers: dict[int, Layer] = {}
        self.total = 0  #: bytes

    @property
    def here(self) -> int:
        """Bytes: all of them."""
        return self.total

    def expect(self) -> None:
        """The images are complete. RemoteProtocolError if they do not fit each other."""
        for name, layer in self._store.layers.items():
            pid = task_of(name)
            if pid is not None:
                self._layers[pid] = layer
                self.total += self.images.rewrite(name, layer)

    def find(self, pid: int, address: int, pages: int) -> list[Extent]:
        """Where the pages from `address` on are, as many as lie together in memory, `pages` at most."""
        found: list[Extent] = []
        try:
            for run in self._layers[pid].cut(address, pages * PAGE_SIZE):
                if run.pages is not None:
                    found += run.pages.extents(run.offset, run.length)
        except (KeyError, MissingPage):
            return found
        return found

    def ask(self, pid: int, address: int) -> None:
        """There is nobody to ask. RemoteProtocolError for a page that is not here: no pagemap lists it."""
        if not self.find(pid, address, 1):
            raise RemoteProtocolError(f"criu lazy-pages asks for {address:#x} of process {pid}, where no page is")


def lazy_ranges(name: str, data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each mapping of an `mm-PID.img` whose pages CRIU can let follow, ascending. ImageError."""
    for mm in decode(name, data).messages(memory_pb2.Mm):
        for vma in mm.vmas:
            kind = vma.flags & (_MAP_ANONYMOUS | _MAP_PRIVATE | _MAP_LOCKED | _MAP_HUGETLB)
            special = vma.status & (_VMA_VDSO | VMA_VVAR | VMA_VSYSCALL)
            if kind == _MAP_ANONYMOUS | _MAP_PRIVATE and not special:
                yield vma.start, vma.end


def parts(runs: Iterable[Run], ranges: Iterable[tuple[int, int]]) -> Iterator[Part]:
    """The runs, cut where a range begins or ends; both ascend."""
    following = iter(ranges)
    begin, end = next(following, _NO_RANGE)
    for run in runs:
        start, behind = run.start, run.start + run.length
        while start < behind:
            while end <= start:
                begin, end = next(following, _NO_RANGE)
            lazy = begin <= start
            stop = min(behind, end if lazy else begin)
            yield Part(start, stop - start, lazy, run)
            start = stop


def _present(name: str, layer: Layer) -> Iterator[Run]:
    for run in layer:
        if run.pages is None:
            raise RemoteProtocolError(f"{name}: the pages at {run.start:#x} did not come, and none were to follow")
        yield run


def _joined(cut: Iterable[Part], pages: StoredImage) -> Iterator[tuple[int, int, bool]]:
    """Start, end and laziness of what lies together in memory; what is not lazy is added to `pages`."""
    start, end, lazy = 0, 0, False
    for part in cut:
        if not part.lazy and part.run.pages is not None:
            for extent in part.run.pages.extents(part.run.offset + part.start - part.run.start, part.length):
                pages.add(extent)
        if (part.start, part.lazy) != (end, lazy):
            if start < end:
                yield start, end, lazy
            start, lazy = part.start, part.lazy
        end = part.start + part.length
    if start < end:
        yield start, end, lazy
