"""A program of Popcorn's compiler: DIR/bin/NAME_x86-64 and DIR/bin/NAME_aarch64, and its processes' threads changed.

Popcorn's tools give every function and variable the same address in both, so that memory other than stacks needs no
change; what is mapped from the files must cover the same pages. Where the target's stack is longer than the source's it
needs pages below, which must be in the dump: none can be added to an image of pages.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from transform.errors import AddressError, TransformError
from transform.images.codec import Image
from transform.images.proto import task_pb2
from transform.isa.pair import KEPT_PAIRS, Executable, version
from transform.memory import Memory
from transform.popcorn.cores import read_thread, write_thread
from transform.popcorn.machine import MACHINES
from transform.popcorn.pair import PopcornPair
from transform.popcorn.places import Side
from transform.popcorn.rewrite import Rewritten
from transform.popcorn.sections import read_call_sites

_PAGE = 4096
_WRITABLE = 2
"""A segment's flag."""


class PopcornProgram:
    """From the executable `source` to `target`, `pair` being their call sites."""

    def __init__(self, source: Executable, target: Executable, pair: PopcornPair) -> None:
        self.source, self.target, self._pair = source, target, pair

    @staticmethod
    def read(directory: Path, name: str, source: str, target: str) -> "PopcornProgram | None":
        """None if Popcorn's compiler did not make the program, or it is not there. OptionError or TransformError if it
        is no pair."""
        paths = [directory / "bin" / f"{name}_{isa}" for isa in (source, target)]
        if not all(path.is_file() for path in paths):
            return None
        return _read(paths[0], paths[1], source, target, tuple(map(version, paths)))

    def change_threads(self, cores: Mapping[int, Image], memory: Memory) -> None:
        """Every thread of a process: its core image, and its stack in the dump. TransformError, AddressError."""
        source, target = self._pair.source.machine.name, self._pair.target.machine.name
        threads, held = {}, {}
        for tid, image in cores.items():
            (core,) = image.messages(task_pb2.Core)
            if core.HasField("thread_info") or core.HasField("ti_aarch64"):
                who = f"thread {tid}"
                held[who], threads[who] = core, read_thread(core, source, who)
        stacks = {who: thread.registers for who, thread in threads.items()}
        made = self._pair.translate(memory, stacks, lambda address, length: self._load(memory, address, length))
        for who, rewritten in made.items():
            low = threads[who].registers.values[self._pair.source.machine.stack_pointer]
            write_stack(memory, rewritten, low, f"{who}: its stack on {target}")
            write_thread(held[who], replace(threads[who], registers=rewritten.registers), target)

    def _load(self, memory: Memory, address: int, length: int) -> bytes:
        """What the target's process has there: constants are its executable's."""
        for _, start, _, size, flags in self.target.segments:
            if start <= address < start + size and not flags & _WRITABLE:
                return self.target.bytes_at(address, length)
        return memory.read(address, length)


def write_stack(memory: Memory, made: Rewritten, source: int, what: str) -> None:
    """Write it to the pages in which it is not what is there already. `source`: the source's stack pointer.

    TransformError for a stack that the dump has no room for.
    """
    room = memory.vma_at(source).start
    if made.low < room:
        raise TransformError(f"{what} needs {room - made.low} bytes more than are mapped")
    end = made.low + len(made.contents)
    before = memory.read(made.low, len(made.contents))
    for start in range(made.low - made.low % _PAGE, end, _PAGE):
        first, last = max(start - made.low, 0), min(start + _PAGE, end) - made.low
        if before[first:last] != made.contents[first:last]:
            try:
                memory.write(made.low + first, made.contents[first:last])
            except AddressError as error:
                raise TransformError(f"{what} is longer, and needs a page that the dump has not: {error}") from None


@lru_cache(maxsize=KEPT_PAIRS)
def _read(
    one: Path, other: Path, source: str, target: str, _versions: tuple[tuple[int, ...], ...]
) -> PopcornProgram | None:
    """Kept: what is checked before a process is frozen need not be read again while it is."""
    ours, theirs = read_call_sites(one), read_call_sites(other)
    if ours is None and theirs is None:
        return None
    if ours is None or theirs is None:
        raise TransformError(f"{one} and {other}: no pair: one has Popcorn's sections, the other has not")
    executables = [Executable.read(path, isa, []) for path, isa in ((one, source), (other, target))]
    if _pages(executables[0]) != _pages(executables[1]):
        raise TransformError(f"{one} and {other}: no pair: their segments do not cover the same pages")
    if ours.ids() != theirs.ids():
        raise TransformError(f"{one} and {other}: no pair: their call sites differ")
    pair = PopcornPair(Side(ours, MACHINES[source]), Side(theirs, MACHINES[target]))
    return PopcornProgram(executables[0], executables[1], pair)


def _pages(executable: Executable) -> list[tuple[int, ...]]:
    """Of each segment: the first page in the file and in memory, where both end, flags."""
    return [
        (offset // _PAGE, start // _PAGE, -(-(start + in_file) // _PAGE), -(-(start + size) // _PAGE), flags)
        for offset, start, in_file, size, flags in executable.segments
    ]
