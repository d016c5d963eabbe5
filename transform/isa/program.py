"""A program of hetcc's: its pair, and its processes' threads changed.

A thread is read from its core image as one without an ISA, and written as the other's; the return addresses on its
stack become those of the same sites in the target's executable, and that is all that changes there.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from transform.images.codec import Image
from transform.images.proto import task_pb2
from transform.isa import aarch64, x86_64
from transform.isa.frames import Words, translate, translated
from transform.isa.pair import Executable, Pair
from transform.isa.thread import Place, Thread
from transform.memory import Memory


class UnifiedProgram:
    """With the executables of a pair, to the ISA `target`."""

    def __init__(self, pair: Pair, target: str) -> None:
        self._pair, self._target = pair, target

    @property
    def source(self) -> Executable:
        """What runs."""
        return self._pair.source

    @property
    def target(self) -> Executable:
        """What is to run."""
        return self._pair.target

    @classmethod
    def read(cls, directory: Path, name: str, source: str, target: str) -> "UnifiedProgram":
        """As Pair.read."""
        return cls(Pair.read(directory, name, source, target), target)

    def change_threads(self, cores: Mapping[int, Image], memory: Memory) -> None:
        """Every thread of a process: its core image, and its stack in the dump. TransformError, AddressError."""
        words = Words(memory)
        threads = {tid: image.messages(task_pb2.Core)[0] for tid, image in cores.items()}
        alive = {tid: core for tid, core in threads.items() if _has_registers(core)}
        words.expect(map(self._stack, alive.values()))
        for tid, core in alive.items():
            self._change(core, words, f"thread {tid}")
        words.flush()

    def _stack(self, core: task_pb2.Core) -> int:
        here = core.thread_info if self._target == aarch64.NAME else core.ti_aarch64
        return here.gpregs.sp

    def _change(self, core: task_pb2.Core, words: Words, who: str) -> None:
        thread = self._read(core, words.read, who)
        translate(words, thread.frame, self._pair, who)
        link = translated(thread.link, self._pair, who) if thread.place is not Place.AFTER_CALL else 0
        for address, value in self._write(core, thread, link).items():
            words.write(address, value)

    def _read(self, core: task_pb2.Core, read: Callable[[int], int], who: str) -> Thread:
        if self._target == aarch64.NAME:
            return x86_64.read_thread(core, self.source, read, who)
        return aarch64.read_thread(core, self.source, who)

    def _write(self, core: task_pb2.Core, thread: Thread, link: int) -> dict[int, int]:
        moved = thread.returning_to(link)
        core.ClearField("thread_info" if self._target == aarch64.NAME else "ti_aarch64")
        write = x86_64.write_thread if self._target == x86_64.NAME else aarch64.write_thread
        return write(core, moved, self.target)


def _has_registers(core: task_pb2.Core) -> bool:
    return core.HasField("thread_info") or core.HasField("ti_aarch64")
