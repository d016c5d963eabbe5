"""The memory of a dumped task, read and written by virtual address.

A task's pages are in `pages-N.img`, in the order of the extents that `pagemap-PID.img` lists; `mm-PID.img` says what
is mapped. The pages themselves stay where they are: a `PageStore` reads and patches ranges of them, over the link in a
session or in a directory offline. Held here are only the extents, as arrays. Shared memory has a pagemap of its own
(`pagemap-shmem-ID.img`, addressed from the segment's start), found by the mapping's segment id or, where CRIU sees it
as a memfd (on recent kernels all shared anonymous memory), by way of `files.img` and `memfd.img`. After pre-dumps a
page can be in the round before, whose pagemap of the same name says where, or that it is in the one before that.
Format: CRIU's images/pagemap.proto, mm.proto, vma.proto, memfd.proto and criu/include/image.h.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from transform.errors import AddressError, ImageError
from transform.images.codec import decode, scan
from transform.images.proto import files_pb2, memory_pb2

PAGE_SIZE = 4096
"""Bytes, for a task whose auxiliary vector does not tell (x86-64 has no other)."""
AT_PAGESZ = 6
ADDRESS_LIMIT = 2**64 - 1

PE_PARENT, PE_LAZY, PE_PRESENT = 1, 2, 4
VMA_VSYSCALL, VMA_FILE_PRIVATE, VMA_FILE_SHARED, VMA_ANON_SHARED = 1 << 2, 1 << 6, 1 << 7, 1 << 8
VMA_SYSVIPC, VMA_VVAR, VMA_MEMFD = 1 << 10, 1 << 12, 1 << 14


class PageStore(Protocol):
    """Where the pages images are. Synchronous: a session calls transforms from a worker thread."""

    def read(self, image: str, offset: int, length: int) -> bytes:
        """Exactly `length` bytes of `image` (such as "pages-1.img") from `offset`."""
        ...

    def patch(self, image: str, offset: int, data: bytes) -> None:
        """Replace bytes that are in `image` already; its size does not change."""
        ...


@dataclass(frozen=True)
class EarlierRound:
    """A pre-dump: its pagemaps by name, and the store that has its pages images."""

    pagemaps: Mapping[str, bytes]
    store: PageStore


class Residence(IntEnum):
    """Where the pages of an extent are."""

    PRESENT = 0
    PARENT = 1
    LAZY = 2


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a range of memory that lies together: in `image` of `store` at `offset`, or (None) zero pages of none."""

    length: int
    store: PageStore | None = None
    image: str = ""
    offset: int = 0


class Pagemap:
    """The extents of one pagemap image: ascending, each with its place in the pages image."""

    def __init__(self, name: str, data: bytes, page_size: int) -> None:
        """Raises `ImageError` for extents out of order or outside of the address space."""
        head = next(scan(name, data, memory_pb2.PagemapHead), None)
        if head is None:
            raise ImageError(name, len(data), "a pagemap without a head")
        self.name = name
        self.pages = f"pages-{head.pages_id}.img"
        self._starts, self._ends, self._offsets = array("Q"), array("Q"), array("Q")
        self._residence = array("B")
        self._collect(data, page_size)

    def _collect(self, data: bytes, page_size: int) -> None:
        offset, last = 0, 0
        for index, entry in enumerate(scan(self.name, data, memory_pb2.PagemapEntry)):
            length = page_size * (entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages)
            end = entry.vaddr + length
            if entry.vaddr < last or entry.vaddr % page_size or end > ADDRESS_LIMIT:
                raise ImageError(self.name, 0, f"extent {index} at {entry.vaddr:#x} is out of order or bounds")
            residence = _residence(entry)
            self._starts.append(entry.vaddr)
            self._ends.append(end)
            self._offsets.append(offset)
            self._residence.append(residence)
            offset += length if residence is Residence.PRESENT else 0
            last = end

    def locate(self, address: int) -> tuple[Residence | None, int, int]:
        """Residence of the page at `address`, its offset in the pages image, and where the extent ends.

        In a hole the residence is None and the end is where the next extent begins.
        """
        index = bisect_right(self._starts, address) - 1
        if index >= 0 and address < self._ends[index]:
            offset = self._offsets[index] + address - self._starts[index]
            return Residence(self._residence[index]), offset, self._ends[index]
        end = self._starts[index + 1] if index + 1 < len(self._starts) else ADDRESS_LIMIT
        return None, 0, end


def _residence(entry: memory_pb2.PagemapEntry) -> Residence:
    if not entry.HasField("flags"):
        return Residence.PARENT if entry.in_parent else Residence.PRESENT
    if entry.flags & PE_PRESENT:
        return Residence.PRESENT
    return Residence.PARENT if entry.flags & PE_PARENT else Residence.LAZY


class Memory:
    """One task's address space as the dump holds it. Writes go to the store at once."""

    def __init__(
        self, pid: int, images: Mapping[str, bytes], store: PageStore, before: Sequence[EarlierRound] = ()
    ) -> None:
        """`images` has mm-PID, pagemap-PID; pagemap-shmem-*, files and memfd where shared memory is to be seen.
        `before`: the rounds before the dump, the latest first.

        A task that shares its address space with another has neither: raises `AddressError`, as for an unknown pid.
        """
        self.pid = pid
        self._images = images
        self._store, self._before = store, before
        mm_name, pagemap_name = f"mm-{pid}.img", f"pagemap-{pid}.img"
        if mm_name not in images or pagemap_name not in images:
            raise AddressError(pid, 0, f"the dump has no {mm_name} with {pagemap_name}")
        mm = decode(mm_name, images[mm_name]).messages(memory_pb2.Mm)
        if len(mm) != 1:
            raise ImageError(mm_name, 0, f"{len(mm)} entries where one was expected")
        self.mm = mm[0]
        self.page_size = _page_size(mm_name, self.mm)
        self._pagemap = Pagemap(pagemap_name, images[pagemap_name], self.page_size)
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
        return b"".join(
            bytes(piece.length) if piece.store is None else piece.store.read(piece.image, piece.offset, piece.length)
            for piece in self._pieces(address, length)
        )

    def write(self, address: int, data: bytes) -> None:
        """Patch the pages that hold `address` to `address + len(data)`; all must be in the dump, or none changes."""
        pieces = list(self._pieces(address, len(data)))
        done = 0
        for piece in pieces:
            if piece.store is None:
                reason = "the task never touched this page: there is nothing in the dump to patch"
                raise AddressError(self.pid, address + done, reason)
            done += piece.length
        done = 0
        for piece in pieces:
            if piece.store is not None:
                piece.store.patch(piece.image, piece.offset, data[done : done + piece.length])
            done += piece.length

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
            data = self._before[number].pagemaps.get(name)
            self._earlier[number, name] = None if data is None else Pagemap(name, data, self.page_size)
        return self._earlier[number, name]

    def _backing(self, vma: memory_pb2.Vma, address: int) -> tuple[Pagemap | None, int]:
        """The pagemap (None: no page in the dump) that has the pages of `vma`, and what to add to an address for it."""
        shared_file = vma.status & VMA_FILE_SHARED and not vma.status & VMA_MEMFD
        if shared_file or vma.status & (VMA_VVAR | VMA_VSYSCALL | VMA_SYSVIPC):
            reason = "a page of the kernel, of a shared file or of System V memory: it is not in the task's dump"
            raise AddressError(self.pid, address, reason)
        if not vma.status & (VMA_ANON_SHARED | VMA_FILE_SHARED):
            return self._pagemap, 0
        segment = self._memfd_segment(vma, address) if vma.status & VMA_MEMFD else vma.shmid
        if segment not in self._shared:
            name = f"pagemap-shmem-{segment}.img"
            data = self._images.get(name)
            self._shared[segment] = None if data is None else Pagemap(name, data, self.page_size)
        return self._shared[segment], vma.pgoff - vma.start

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
