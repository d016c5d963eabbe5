"""Mappings that only one ISA can have, and what the kernel told the program."""

import pytest

from tests.transform.synthetic import mm, vma
from transform.images.codec import decode
from transform.images.proto import memory_pb2
from transform.isa.address_space import VMA_VDSO, X86_LIMIT, change_mm
from transform.memory import VMA_VSYSCALL, VMA_VVAR

pytestmark = pytest.mark.t0

PAGE = 4096
AT_PHDR, AT_HWCAP, AT_SYSINFO_EHDR = 3, 16, 33


def space(*vmas: memory_pb2.Vma, auxv: tuple[int, ...] = ()) -> memory_pb2.Mm:
    (found,) = decode("mm-1.img", mm(*vmas, auxv=auxv)).messages(memory_pb2.Mm)
    return found


@pytest.mark.parametrize(("to_x86", "left"), [(True, [PAGE, 4 * PAGE]), (False, [PAGE, 4 * PAGE, X86_LIMIT])])
def test_the_kernels_own_goes_and_the_vdso_becomes_memory(to_x86: bool, left: list[int]) -> None:
    found = space(
        vma(PAGE, 2 * PAGE),
        vma(2 * PAGE, 3 * PAGE, VMA_VVAR),
        vma(4 * PAGE, 5 * PAGE, VMA_VDSO, prot=5),
        vma(6 * PAGE, 7 * PAGE, VMA_VSYSCALL),
        vma(X86_LIMIT, X86_LIMIT + PAGE),
    )
    assert change_mm(found, to_x86=to_x86) == [(4 * PAGE, 5 * PAGE)]
    assert [one.start for one in found.vmas] == left
    assert not found.vmas[1].status & VMA_VDSO and found.vmas[1].prot == 0


def test_what_describes_the_processor_is_not_told() -> None:
    found = space(vma(PAGE, 2 * PAGE), auxv=(AT_PHDR, 64, AT_HWCAP, 99, AT_SYSINFO_EHDR, 4096))
    change_mm(found, to_x86=False)
    assert list(found.mm_saved_auxv) == [AT_PHDR, 64]
