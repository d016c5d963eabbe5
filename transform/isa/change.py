"""The transform: everything in a dump that is of the source's ISA becomes the target's.

core, mm, files and pagemap images are held; at the end of the dump every thread is read, the return addresses on its
stack and, in the code that CRIU itself has touched, the bytes of the executable are replaced, and the images are
written anew. All else, pages above all, passes as it is. Any doubt is an error: nothing is declared complete then, and
the process runs on at the source.
"""

import posixpath
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from transform.chain import EndOfDump
from transform.errors import OptionError, TransformError
from transform.extents import Pagemap
from transform.images.codec import Image, decode
from transform.images.pagemap import task_of
from transform.images.proto import memory_pb2, task_pb2
from transform.isa import aarch64, x86_64
from transform.isa.address_space import X86_LIMIT, change_mm
from transform.isa.open_files import executable_of, swap_all
from transform.isa.pair import KEPT_PAIRS, MACHINES, Executable
from transform.isa.program import UnifiedProgram
from transform.memory import VMA_FILE_PRIVATE, Memory
from transform.popcorn.program import PopcornProgram

FILES = "files.img"
TASK_ALIVE, TASK_DEAD, TASK_STOPPED = 1, 2, 3
"""States of a task, as in CRIU's compel/include/uapi/task-state.h."""
PROT_WRITE = 2
_ISAS = {x86_64.MACHINE: x86_64.NAME, aarch64.MACHINE: aarch64.NAME}


class Program(Protocol):
    """Two executables, for the ISAs `source` and `target`, and how threads change that run them."""

    @property
    def source(self) -> Executable: ...

    @property
    def target(self) -> Executable: ...

    def change_threads(self, cores: Mapping[int, Image], memory: Memory) -> None:
        """Every thread of a process: its core image, and its stack in the dump. TransformError, AddressError."""
        ...


class ChangeOfIsa:
    """To the ISA `target`, with the pairs in `binaries`. `resumed`: processes that are stopped in the dump and are to
    run in the new one, by pid; who calls may add to it until the end of the dump."""

    name = "change of ISA"
    needs_memory = True
    warnings: tuple[str, ...] = ()

    def __init__(self, target: str, binaries: Path, resumed: Container[int] = ()) -> None:
        """`OptionError` for an ISA that is not known or a directory that is not there."""
        if target not in MACHINES:
            raise OptionError(f"--arch {target}: not known; give {' or '.join(MACHINES)}")
        if not (binaries / "bin").is_dir():
            raise OptionError(f"--binaries {binaries}: has no directory bin; give one that `hetcc --layout` has made")
        self._target, self._binaries, self._resumed = target, binaries, resumed
        self._source = next(isa for isa in MACHINES if isa != target)
        self._programs: dict[str, Program] = {}

    def read_programs(self) -> None:
        """Read what the directory has, so that no process is frozen for that. What is no pair is an error to a dump
        that needs it."""
        found = sorted(path.name for path in (self._binaries / "bin").glob(f"*_{self._source}"))
        for name in found[:KEPT_PAIRS]:
            with suppress(OptionError, TransformError, OSError):
                self._named(name)

    def check(self, executable: Path, contents: Path) -> None:
        """Before anything is frozen: `TransformError` if what runs from `executable`, and is read at `contents`, is not
        the one of this machine of a pair there. OSError."""
        program = self._named(executable.name)
        if not program.source.is_file(contents):
            raise TransformError(f"{executable}: what runs is not {program.source.path}: give the pair that it is of")

    def wants(self, image: str) -> bool:
        return image == FILES or image.startswith(("core-", "mm-")) or task_of(image) is not None

    def transform(self, image: str, data: bytes) -> None:
        """Every image is held. `TransformError` for a dump that is not of the source's ISA, as soon as it is seen."""
        if image.startswith("core-"):
            for core in decode(image, data).messages(task_pb2.Core):
                if _ISAS.get(core.mtype) != self._source:
                    raise TransformError(f"{image}: is of {_ISAS.get(core.mtype, 'another ISA')}, not {self._source}")

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        """All held images of the target's ISA; pages are patched. `TransformError` for whatever cannot be changed."""
        files = decode(FILES, dump.images[FILES])
        results: dict[str, Image] = {FILES: files}
        done = {}
        executables: dict[int, Program] = {}
        for task, threads in _tasks(dump):
            cores = {tid: decode(f"core-{tid}.img", dump.images[f"core-{tid}.img"]) for tid in threads}
            results |= {image.name: image for image in cores.values()}
            if f"mm-{task}.img" in dump.images:
                memory, mm = dump.memory(task), decode(f"mm-{task}.img", dump.images[f"mm-{task}.img"])
                results[mm.name] = mm
                program = self._program_of(files, mm.messages(memory_pb2.Mm)[0].exe_file_id, executables)
                program.change_threads(cores, memory)
                self._change_memory(mm, memory, program)
                done[memory.pagemap.name] = self._pagemap(memory.pagemap)
            elif any(core.HasField("tc") and core.tc.task_state != TASK_DEAD for core in _cores(cores.values())):
                raise TransformError(f"task {task}: has no memory of its own in the dump; it cannot change ISA alone")
            for image in cores.values():
                self._change_state(image, resume=task in self._resumed)
        swap_all(files)
        for number, program in executables.items():
            executable_of(files, number).size = program.target.size
        return {name: image.encode() for name, image in results.items()} | done

    def _pagemap(self, pagemap: Pagemap) -> bytes:
        return pagemap.below(X86_LIMIT) if self._target == x86_64.NAME else pagemap.data

    def _program_of(self, files: Image, number: int, executables: dict[int, Program]) -> Program:
        if number not in executables:
            path = executable_of(files, number).name.decode(errors="surrogateescape")
            executables[number] = program = self._named(posixpath.basename(path))
            size = executable_of(files, number).size
            if size != program.source.size:
                here = program.source
                raise TransformError(f"{path}: has {size} bytes in the dump, but {here.path} has {here.size}")
        return executables[number]

    def _named(self, name: str) -> Program:
        name = name.removesuffix(f"_{self._source}")
        if name not in self._programs:
            where = self._binaries, name, self._source, self._target
            self._programs[name] = PopcornProgram.read(*where) or UnifiedProgram.read(*where)
        return self._programs[name]

    def _change_state(self, image: Image, *, resume: bool) -> None:
        for core in image.messages(task_pb2.Core):
            core.mtype = x86_64.MACHINE if self._target == x86_64.NAME else aarch64.MACHINE
            if resume and core.HasField("tc") and core.tc.task_state == TASK_STOPPED:
                core.tc.task_state = TASK_ALIVE

    def _change_memory(self, image: Image, memory: Memory, program: Program) -> None:
        """The mm image, and the pages that are of one ISA: of the vDSO, and of code that CRIU has touched."""
        (mm,) = image.messages(memory_pb2.Mm)
        code = [(vma.start, vma.end) for vma in mm.vmas if _is_code(vma, mm.exe_file_id)]
        blank = change_mm(mm, to_x86=self._target == x86_64.NAME)
        zeroes = [(start, bytes(end - start)) for one in blank for start, end in memory.pagemap.overlaps(*one)]
        own = [
            (start, program.target.bytes_at(start, end - start))
            for one in code
            for start, end in memory.pagemap.overlaps(*one)
        ]
        memory.write_all([*zeroes, *own])


def _cores(images: Iterable[Image]) -> Iterator[task_pb2.Core]:
    for image in images:
        yield from image.messages(task_pb2.Core)


def _is_code(vma: memory_pb2.Vma, executable: int) -> bool:
    """Whether it maps what of the executable is never written to: the program's pages there are the file's."""
    return bool(vma.status & VMA_FILE_PRIVATE) and vma.shmid == executable and not vma.prot & PROT_WRITE


def _tasks(dump: EndOfDump) -> list[tuple[int, Sequence[int]]]:
    """Each process with the ids of its threads, itself among them: also one that has ended, which has none."""
    tree = decode("pstree.img", dump.images["pstree.img"]).messages(task_pb2.PstreeEntry)
    tasks = [(entry.pid, dict.fromkeys((entry.pid, *entry.threads))) for entry in tree]
    return [(task, [tid for tid in threads if f"core-{tid}.img" in dump.images]) for task, threads in tasks]
