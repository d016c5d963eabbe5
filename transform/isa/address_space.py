"""What is mapped, and what the kernel told the program about itself: mm images for the other ISA.

Mappings of the kernel's own are of one ISA. The vDSO's data has no pages in a dump, and goes. The vDSO itself has some,
which cannot be taken out of an image: a mapping without access is left in its place, of zeroes. What lies above the
highest address that x86-64 can have, the kernel's on aarch64, goes whole.
"""

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
