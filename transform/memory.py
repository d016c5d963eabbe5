"""The memory of a dumped task, read and written by virtual address.

A task's pages are in `pages-N.img`, in the order of the extents that `pagemap-PID.img` lists; `mm-PID.img` says what
is mapped. The pages themselves stay where they are: a `PageStore` reads and patches ranges of them, over the link in a
session or in a directory offline. Held here are only the extents (`transform.extents`). Shared memory has a pagemap of
its own (`pagemap-shmem-ID.img`, addressed from the segment's start), found by the mapping's segment id or, where CRIU
sees it as a memfd (on recent kernels all shared anonymous memory), by way of `files.img` and `memfd.img`. After
pre-dumps a page can be in the round before, whose pagemap of the same name says where, or that it is in the one before.
Format: CRIU's images/pagemap.proto, mm.proto, vma.proto, memfd.proto and criu/include/image.h.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from types import MappingProxyType
from typing import Protocol

from transform.errors import AddressError, ImageError
from transform.extents import PAGE_SIZE, Pagemap, Residence
from transform.images.codec import decode, scan
from transform.images.proto import files_pb2, memory_pb2

AT_PAGESZ = 6
VMA_VSYSCALL, VMA_FILE_PRIVATE, VMA_FILE_SHARED, VMA_ANON_SHARED = 1 << 2, 1 << 6, 1 << 7, 1 << 8
VMA_SYSVIPC, VMA_VVAR, VMA_MEMFD = 1 << 10, 1 << 12, 1 << 14


class PageStore(Protocol):
    """Where the pages images are. Synchronous: a session calls transforms from a worker thread.

    One that is far away overrides `read_all` and `patch_all`, so that the way there counts once.
    """

    def read(self, image: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of `image` (such as "pages-1.img") from `offset`."""
        ...

    def patch(self, image: str, offset: int, data: bytes) -> None:
        """Replace bytes that are in `image` already; its size does not change."""
        ...

    def read_all(self, places: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """`read` of each: image, offset, length."""
        return [self.read(*place) for place in places]

    def patch_all(self, patches: Sequence[tuple[str, int, bytes]]) -> None:
        """`patch` with each, in this order: image, offset, data."""
        for patch in patches:
            self.patch(*patch)


@dataclass(frozen=True)
class EarlierRound:
    """A pre-dump: its pagemaps by name, and the store that has its pages images."""

    pagemaps: Mapping[str, Pagemap]
    store: PageStore


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a range of memory that lies together: in `image` of `store` at `offset`, or (None) zero pages of none."""

    length: int
    store: PageStore | None = None
    image: str = ""
    offset: int = 0


class Memory:
    """One task's address space as the dump holds it. Writes go to the store at once."""

    def __init__(
        self,
        pid: int,
        images: Mapping[str, bytes],
        store: PageStore,
        before: Sequence[EarlierRound] = (),
        pagemaps: Mapping[str, Pagemap] = MappingProxyType({}),
    ) -> None:
        """`images` has mm-PID, pagemap-PID; pagemap-shmem-*, files and memfd where shared memory is to be seen.
        `before`: the rounds before the dump, the latest first. `pagemaps`: of `images`, those that have been read.

        A task that shares its address space with another has neither: raises `AddressError`, as for an unknown pid.
        """
        self.pid = pid
        self._images = images
        self._store, self._before, self._known = store, before, pagemaps
        mm_name, pagemap_name = f"mm-{pid}.img", f"pagemap-{pid}.img"
        if mm_name not in images or pagemap_name not in images:
            raise AddressError(pid, 0, f"the dump has no {mm_name} with {pagemap_name}")
        mm = decode(mm_name, images[mm_name]).messages(memory_pb2.Mm)
        if len(mm) != 1:
            raise ImageError(mm_name, 0, f"{len(mm)} entries where one was expected")
        self.mm = mm[0]
        self.page_size = _page_size(mm_name, self.mm)
        self.pagemap = self._of_dump(pagemap_name)
        self._shared: dict[int, Pagemap | None] = {}
        self._earlier: dict[tuple[int, str], Pagemap | None] = {}
        self._vmas = sorted(self.mm.vmas, key=lambda vma: vma.start)
        self._vma_starts = [vma.start for vma in self._vmas]

    def vma_at(self, address: int) -> memory_pb2.Vma:
        """The mapping that holds `address`; `AddressError` when nothing is mapped there."""
        index = bisect_right(self._vma_starts, address) - 1
        if index < 0 or address >= self._vmas[index].end:
            raise AddressError(self.pid, address, "not mapped")
        return self._vmas[index]

    def read(self, address: int, length: int) -> bytes:
        """`length` bytes. Anonymous pages that were never touched, and so are in no image, read as zeros.

        `AddressError` for what is not mapped or not in this dump: unmodified pages of a file, pages of a parent
        dump or of a post-copy source.
        """
        return self.read_all([(address, length)])[0]

    def read_all(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """`read` of each, at once: address, length."""
        pieces = [list(self._pieces(address, length)) for address, length in ranges]
        wanted: dict[int, tuple[PageStore, list[Piece]]] = {}
        for piece in chain.from_iterable(pieces):
            if piece.store is not None:
                wanted.setdefault(id(piece.store), (piece.store, []))[1].append(piece)
        found: dict[int, bytes] = {}
        for store, parts in wanted.values():
            data = store.read_all([(piece.image, piece.offset, piece.length) for piece in parts])
            found |= zip(map(id, parts), data, strict=True)
        return [b"".join(found.get(id(piece)) or bytes(piece.length) for piece in parts) for parts in pieces]

    def write(self, address: int, data: bytes) -> None:
        """Patch the pages that hold `address` to `address + len(data)`; all must be in the dump, or none changes."""
        self.write_all([(address, data)])

    def write_all(self, changes: Sequence[tuple[int, bytes]]) -> None:
        """`write` with each, at once: address, data. All must be in the dump, or none changes."""
        patches: dict[int, tuple[PageStore, list[tuple[str, int, bytes]]]] = {}
        for address, data in changes:
            done = 0
            for piece in self._pieces(address, len(data)):
                if piece.store is None:
                    reason = "the task never touched this page: there is nothing in the dump to patch"
                    raise AddressError(self.pid, address + done, reason)
                patch = piece.image, piece.offset, data[done : done + piece.length]
                patches.setdefault(id(piece.store), (piece.store, []))[1].append(patch)
                done += piece.length
        for store, parts in patches.values():
            store.patch_all(parts)

    def _pieces(self, address: int, length: int) -> Iterator[Piece]:
        stop = address + length
        while address < stop:
            vma = self.vma_at(address)
            piece = self._piece(vma, address, min(stop, vma.end))
            yield piece
            address += piece.length

    def _piece(self, vma: memory_pb2.Vma, address: int, stop: int) -> Piece:
        """The longest run from `address` that lies together; `address` to `stop` is within `vma`."""
        pagemap, shift = self._backing(vma, address)
        if pagemap is None:
            return Piece(stop - address)
        residence, offset, end = pagemap.locate(address + shift)
        length = min(stop, end - shift) - address
        if residence is Residence.PRESENT:
            return Piece(length, self._store, pagemap.pages, offset)
        if residence is Residence.PARENT:
            return self._earlier_piece(pagemap.name, address, shift, length)
        if residence is Residence.LAZY:
            raise AddressError(self.pid, address, "the page is in the source (lazy pages)")
        if vma.status & VMA_FILE_PRIVATE:
            raise AddressError(self.pid, address, "an unmodified page of a mapped file: it is not in the dump")
        return Piece(length)

    def _earlier_piece(self, name: str, address: int, shift: int, length: int) -> Piece:
        """The same of a page that the dump leaves to the rounds before."""
        for number, one in enumerate(self._before):
            pagemap = self._earlier_pagemap(number, name)
            if pagemap is None:
                break
            residence, offset, end = pagemap.locate(address + shift)
            length = min(length, end - shift - address)
            if residence is Residence.PRESENT:
                return Piece(length, one.store, pagemap.pages, offset)
            if residence is not Residence.PARENT:
                break
        raise AddressError(self.pid, address, "the page is in the parent of this dump, and not to be found there")

    def _earlier_pagemap(self, number: int, name: str) -> Pagemap | None:
        if (number, name) not in self._earlier:
            found = self._before[number].pagemaps.get(name)
            self._earlier[number, name] = found and found.in_pages_of(self.page_size)
        return self._earlier[number, name]

    def _backing(self, vma: memory_pb2.Vma, address: int) -> tuple[Pagemap | None, int]:
        """The pagemap (None: no page in the dump) that has the pages of `vma`, and what to add to an address for it."""
        shared_file = vma.status & VMA_FILE_SHARED and not vma.status & VMA_MEMFD
        if shared_file or vma.status & (VMA_VVAR | VMA_VSYSCALL | VMA_SYSVIPC):
            reason = "a page of the kernel, of a shared file or of System V memory: it is not in the task's dump"
            raise AddressError(self.pid, address, reason)
        if not vma.status & (VMA_ANON_SHARED | VMA_FILE_SHARED):
            return self.pagemap, 0
        segment = self._memfd_segment(vma, address) if vma.status & VMA_MEMFD else vma.shmid
        if segment not in self._shared:
            name = f"pagemap-shmem-{segment}.img"
            self._shared[segment] = self._of_dump(name) if name in self._images else None
        return self._shared[segment], vma.pgoff - vma.start

    def _of_dump(self, name: str) -> Pagemap:
        found = self._known.get(name)
        if found is None or found.data != self._images[name]:
            found = Pagemap(name, self._images[name], self.page_size)
        return found.in_pages_of(self.page_size)

    def _memfd_segment(self, vma: memory_pb2.Vma, address: int) -> int:
        """The shared memory id of the memfd that `vma` maps; the mapping names it by its id among the open files."""
        files = scan("files.img", self._images.get("files.img", b""), files_pb2.File)
        inode = next((file.memfd.inode_id for file in files if file.id == vma.shmid and file.HasField("memfd")), None)
        for memfd in scan("memfd.img", self._images.get("memfd.img", b""), memory_pb2.MemfdInode):
            if memfd.inode_id == inode:
                return memfd.shmid
        raise AddressError(self.pid, address, f"shared memory (file {vma.shmid}) that files.img and memfd.img lack")


def _page_size(name: str, mm: memory_pb2.Mm) -> int:
    """From the auxiliary vector, which the image holds as pairs of a type and a value."""
    vector = mm.mm_saved_auxv
    size: int = dict(zip(vector[::2], vector[1::2], strict=False)).get(AT_PAGESZ, PAGE_SIZE)
    if size < PAGE_SIZE or size & (size - 1):
        raise ImageError(name, 0, f"a page size of {size} bytes in the auxiliary vector")
    return size
