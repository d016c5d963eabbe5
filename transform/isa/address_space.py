"""What is mapped, and what the kernel told the program about itself: mm images for the other ISA.

Mappings of the kernel's own are of one ISA. The vDSO's data has no pages in a dump, and goes. The vDSO itself has some,
which cannot be taken out of an image: a mapping without access is left in its place, of zeroes. What lies above the
highest address that x86-64 can have, the kernel's on aarch64, is at the end of the pagemap, and goes whole.
"""

from collections.abc import Iterator, Sequence

from transform.errors import TransformError
from transform.images.codec import scan
from transform.images.pagemap import PagemapWriter
from transform.images.proto import memory_pb2
from transform.isa.open_files import swap_flags
from transform.memory import VMA_VSYSCALL, VMA_VVAR

VMA_REGULAR, VMA_VDSO, VMA_ANON_PRIVATE = 1 << 0, 1 << 3, 1 << 9
"""Bits of a mapping's status, as in CRIU's criu/include/image.h."""
X86_LIMIT = 1 << 47
"""No mapping of a process on x86-64 reaches above."""
ONE_ISAS_AUXV = frozenset({15, 16, 24, 26, 27, 28, 29, 30, 33, 51})
"""Entries of the auxiliary vector (linux/auxvec.h) that describe the processor or the vDSO."""


def change_mm(mm: memory_pb2.Mm, *, to_x86: bool) -> list[tuple[int, int]]:
    """Change it in place; the ranges whose pages are to be zeroed."""
    blank = []
    for index, vma in reversed(list(enumerate(mm.vmas))):
        if vma.status & (VMA_VVAR | VMA_VSYSCALL) or (to_x86 and vma.end > X86_LIMIT):
            del mm.vmas[index]
            continue
        if vma.status & VMA_VDSO:
            vma.status, vma.prot = VMA_REGULAR | VMA_ANON_PRIVATE, 0
            blank.append((vma.start, vma.end))
        if vma.HasField("fdflags"):
            vma.fdflags = swap_flags(vma.fdflags)
    pairs = list(zip(mm.mm_saved_auxv[::2], mm.mm_saved_auxv[1::2], strict=False))
    mm.mm_saved_auxv[:] = [word for pair in pairs if pair[0] not in ONE_ISAS_AUXV for word in pair]
    return blank


def present_extents(name: str, data: bytes, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """What of these ranges has pages in the dump, or in the rounds before. ImageError."""
    for entry, end in _extents(name, data):
        for first, last in ranges:
            if max(entry.vaddr, first) < min(end, last):
                yield max(entry.vaddr, first), min(end, last)


def below_limit(name: str, data: bytes) -> bytes:
    """A pagemap without what x86-64 cannot have. ImageError."""
    return data if not any(end > X86_LIMIT for _, end in _extents(name, data)) else _cut(name, data)


def _extents(name: str, data: bytes) -> Iterator[tuple[memory_pb2.PagemapEntry, int]]:
    for entry in scan(name, data, memory_pb2.PagemapEntry):
        pages = entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages
        yield entry, entry.vaddr + pages * 4096


def _cut(name: str, data: bytes) -> bytes:
    head = next(scan(name, data, memory_pb2.PagemapHead))
    writer = PagemapWriter(head.pages_id)
    for entry, end in _extents(name, data):
        if end <= X86_LIMIT:
            writer.add(entry.vaddr, (end - entry.vaddr) // 4096, entry.flags)
        elif entry.vaddr < X86_LIMIT:
            raise TransformError(f"{name}: an extent at {entry.vaddr:#x} crosses the end of x86-64's addresses")
    return writer.encode()
