"""Whole dumps of a program of Popcorn's, as `imgtransform --arch` gets them: to each ISA, and there and back again."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.transform.popcorn.elf import Segment, elf
from tests.transform.popcorn.encoding import executable, tables
from tests.transform.popcorn.programs import ARM, TEXT, X86, Isa, Program
from tests.transform.popcorn.stacks import SPACE, AbstractStack, Real, invent, realise
from tests.transform.synthetic import BytesStore, extent, image, mm, pagemap, regular, vma
from transform.chain import Chain
from transform.errors import OptionError, TransformError
from transform.images.codec import decode
from transform.images.proto import files_pb2, memory_pb2, task_pb2
from transform.isa.change import TASK_STOPPED, ChangeOfIsa
from transform.isa.thread import FloatingPoint
from transform.memory import Memory
from transform.offline import transform_directory
from transform.options import transforms
from transform.popcorn.cores import Thread, read_thread, write_thread
from transform.popcorn.program import write_stack
from transform.popcorn.rewrite import Rewritten
from transform.popcorn.unwind import Registers

pytestmark = pytest.mark.t0
PAGE, VDSO, LOCAL = 4096, 0x7FFFF000, 0x7AAA0120
READ_ONLY_FILE, VDSO_STATUS = 0x41, 0x209
PROGRAM = Program(12)
OTHER = {X86: ARM, ARM: X86}


@pytest.fixture
def binaries(tmp_path: Path) -> Path:
    (tmp_path / "prog.d" / "bin").mkdir(parents=True)
    for isa in OTHER:
        (tmp_path / "prog.d" / "bin" / f"prog_{isa.name}").write_bytes(executable(PROGRAM, isa))
    return tmp_path / "prog.d"


def core(real: Real, isa: Isa) -> bytes:
    made = task_pb2.Core()
    registers = Registers(real.pc, real.registers)
    write_thread(made, Thread(registers, FloatingPoint(), LOCAL, 0x7AAA0010), isa.name)
    made.tc.CopyFrom(
        task_pb2.TaskCore(task_state=TASK_STOPPED, exit_code=0, personality=0, flags=0, blk_sigset=0, comm=b"prog")
    )
    return image("core", made)


def dump(stacks: list[AbstractStack], reals: list[Real], isa: Isa) -> dict[str, bytes]:
    """A process with these threads; a debugger has written to a page of its code."""
    ordered = sorted(zip(stacks, reals, strict=True), key=lambda one: one[0].base)
    starts = [stack.base - SPACE for stack, _ in ordered]
    program = regular(1, b"/opt/prog")
    program.reg.size = len(executable(PROGRAM, isa))
    tids = [5 + number for number in range(len(reals))]
    return {
        **{f"core-{tid}.img": core(real, isa) for tid, real in zip(tids, reals, strict=True)},
        "files.img": image("files", program),
        "mm-5.img": mm(
            vma(TEXT, TEXT + PAGE, READ_ONLY_FILE, shmid=1, prot=5),
            vma(VDSO, VDSO + PAGE, VDSO_STATUS, prot=5),
            *(vma(start, start + SPACE) for start in starts),
        ),
        "pagemap-5.img": pagemap(
            1, extent(TEXT, 1), extent(VDSO, 1), *(extent(start, SPACE // PAGE) for start in starts)
        ),
        "pages-1.img": b"\xcc" * PAGE
        + b"v" * PAGE
        + b"".join(real.contents.rjust(SPACE, b"\xee") for _, real in ordered),
        "pstree.img": image("pstree", task_pb2.PstreeEntry(pid=5, ppid=0, pgid=5, sid=5, threads=tids)),
    }


def changed(images: Mapping[str, bytes], directory: Path, target: Isa, binaries: Path) -> dict[str, bytes]:
    source, made = directory / f"to-{target.name}", directory / f"at-{target.name}"
    source.mkdir()
    for name, data in images.items():
        (source / name).write_bytes(data)
    transform_directory(source, made, Chain(transforms(arch=target.name, binaries=binaries)))
    return {path.name: path.read_bytes() for path in made.iterdir()}


def check(images: Mapping[str, bytes], stacks: list[AbstractStack], isa: Isa) -> None:
    """The images are of a process on this ISA that has these stacks."""
    store = BytesStore()
    store.images["pages-1.img"] = bytearray(images["pages-1.img"])
    memory = Memory(5, images, store)
    for number, stack in enumerate(stacks):
        wanted = realise(stack, isa)
        assert memory.read(wanted.low, len(wanted.contents)) == wanted.contents
        (made,) = decode(f"core-{5 + number}.img", images[f"core-{5 + number}.img"]).messages(task_pb2.Core)
        thread = read_thread(made, isa.name, "thread")
        assert thread.registers.pc == wanted.pc
        assert {one: value for one, value in thread.registers.values.items() if value} == {
            one: value for one, value in wanted.registers.items() if value
        }
        assert (thread.local, thread.clear_tid) == (LOCAL, 0x7AAA0010)
    assert memory.read(TEXT, PAGE) == isa.name.encode().ljust(PAGE, b"\0"), "code is this ISA's"
    (program,) = decode("files.img", images["files.img"]).messages(files_pb2.File)
    assert program.reg.size == len(executable(PROGRAM, isa))
    (space,) = decode("mm-5.img", images["mm-5.img"]).messages(memory_pb2.Mm)
    assert [one.prot for one in space.vmas if one.start == VDSO] == [0]


@pytest.mark.parametrize("source", OTHER)
def test_a_dump_to_the_other_isa_and_back(source: Isa, tmp_path: Path, binaries: Path) -> None:
    draw = random.Random(3)
    stacks = invent(draw, PROGRAM, [3, 12, 1])
    images = dump(stacks, [realise(stack, source, draw) for stack in stacks], source)
    there = changed(images, tmp_path, OTHER[source], binaries)
    check(there, stacks, OTHER[source])
    check(changed(there, tmp_path, source, binaries), stacks, source)


def test_what_cannot_be_certain_leaves_no_images(tmp_path: Path, binaries: Path) -> None:
    (stack,) = invent(random.Random(3), PROGRAM, [3])
    real = realise(stack, X86)
    real.pc += 1
    with pytest.raises(TransformError, match=r"thread 5: .* is behind no call that .*prog_x86-64 has records of"):
        changed(dump([stack], [real], X86), tmp_path, ARM, binaries)
    assert not (tmp_path / "at-aarch64").exists()


def test_what_runs_is_compared_with_the_pair(binaries: Path) -> None:
    change = ChangeOfIsa("aarch64", binaries)
    change.check(Path("/opt/prog"), binaries / "bin" / "prog_x86-64")
    with pytest.raises(TransformError, match="/opt/prog: what runs is not"):
        change.check(Path("/opt/prog"), binaries / "bin" / "prog_aarch64")


def test_executables_that_are_no_pair(binaries: Path) -> None:
    arm = binaries / "bin" / "prog_aarch64"

    def refused(data: bytes, reason: str) -> None:
        arm.write_bytes(data)
        with pytest.raises((TransformError, OptionError), match=reason):
            ChangeOfIsa("aarch64", binaries).check(Path("prog"), arm)

    sections = tables(PROGRAM, ARM)
    refused(elf("aarch64", {}), "no pair: one has Popcorn's sections")
    refused(elf("aarch64", sections, [Segment(TEXT, bytes(PAGE + 1))]), "segments do not cover the same pages")
    refused(executable(Program(13), ARM), "no pair: their call sites differ")
    refused(executable(PROGRAM, X86), "is for EM_X86_64, not for aarch64")


class Recorder(BytesStore):
    """A page store that says what was written to it."""

    def __init__(self, pages: bytes) -> None:
        super().__init__(pages_1=pages)
        self.written: list[tuple[int, bytes]] = []

    def patch(self, name: str, offset: int, data: bytes) -> None:
        self.written.append((offset, data))


def test_a_stack_is_written_where_it_differs() -> None:
    base = 0x7FFF0000
    images = {"mm-1.img": mm(vma(base - 3 * PAGE, base)), "pagemap-1.img": pagemap(1, extent(base - 3 * PAGE, 3))}
    store = Recorder(b"1" * PAGE + b"2" * PAGE + b"3" * PAGE)
    contents = b"y" * 100 + b"x" * PAGE + b"3" * PAGE
    made = Rewritten(Registers(0, {}), base - len(contents), contents)
    write_stack(Memory(1, images, store), made, base - 16, "its stack")
    assert store.written == [(PAGE - 100, b"y" * 100), (PAGE, b"x" * PAGE)]


def test_a_stack_that_has_no_room_is_refused() -> None:
    base = 0x7FFF0000
    images = {"mm-1.img": mm(vma(base - 2 * PAGE, base)), "pagemap-1.img": pagemap(1, extent(base - PAGE, 1))}
    memory = Memory(1, images, BytesStore(pages_1=bytes(PAGE)))

    def made(size: int, byte: bytes) -> Rewritten:
        return Rewritten(Registers(0, {}), base - size, byte * size)

    write_stack(memory, made(2 * PAGE, b"\0"), base - 16, "its stack")  # a page of zeroes need not be there
    with pytest.raises(TransformError, match="its stack is longer, and needs a page that the dump has not"):
        write_stack(memory, made(PAGE + 16, b"x"), base - 16, "its stack")
    with pytest.raises(TransformError, match="its stack needs 16 bytes more than are mapped"):
        write_stack(memory, made(2 * PAGE + 16, b"\0"), base - 16, "its stack")
