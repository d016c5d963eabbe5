"""Threads of Popcorn's programs in core images: all registers that can hold a value, by their DWARF numbers.

Popcorn's libc has one layout of what is around the thread pointer for both ISAs: the thread's descriptor lies right
below its thread-local variables. x86-64 points to the first byte of the one, aarch64 to 16 bytes below the other.
"""

from dataclasses import dataclass

from transform.images.proto import task_pb2
from transform.isa import aarch64, x86_64
from transform.isa.thread import FloatingPoint
from transform.popcorn.machine import AARCH64, X86_64
from transform.popcorn.unwind import Registers

DESCRIPTOR = 288
"""Bytes of `struct pthread` in Popcorn's musl 1.1.18, the same on both ISAs."""
ABOVE_POINTER = {x86_64.NAME: DESCRIPTOR, aarch64.NAME: 16}
"""Bytes from the thread pointer to the thread-local variables."""
_NAMES = ("ax", "dx", "cx", "bx", "si", "di", "bp", "sp", *(f"r{number}" for number in range(8, 16)))
"""CRIU's of x86-64's general registers, by DWARF number."""


@dataclass(frozen=True, slots=True)
class Thread:
    """What a core image says of a thread. `local`: where its thread-local variables are."""

    registers: Registers
    floating_point: FloatingPoint
    local: int
    clear_tid: int


def read_thread(core: task_pb2.Core, isa: str, who: str) -> Thread:
    """A thread of that ISA. TransformError, saying `who`, for 32-bit code."""
    if isa == x86_64.NAME:
        return _read_x86_64(core.thread_info, who)
    return _read_aarch64(core.ti_aarch64, who)


def write_thread(core: task_pb2.Core, thread: Thread, isa: str) -> None:
    """Make it a core image of that ISA, and of no other."""
    values, vectors = thread.registers.values, X86_64.vectors if isa == x86_64.NAME else AARCH64.vectors
    state = FloatingPoint(
        thread.floating_point.rounding,
        thread.floating_point.flush,
        thread.floating_point.raised,
        tuple(values.get(number, 0) for number in vectors),
    )
    core.ClearField("ti_aarch64" if isa == x86_64.NAME else "thread_info")
    pointer = thread.local - ABOVE_POINTER[isa]
    if isa == x86_64.NAME:
        general = {name: values.get(number, 0) for number, name in enumerate(_NAMES)}
        registers = x86_64.in_user_code(thread.registers.pc, general.pop("sp"), pointer, **general)
        x86_64.write_state(core, thread.clear_tid, registers, state)
    else:
        *numbered, stack = (values.get(number, 0) for number in AARCH64.general)
        held = task_pb2.RegistersAarch64(regs=numbered, sp=stack, pc=thread.registers.pc, pstate=0)
        aarch64.write_state(core, thread.clear_tid, pointer, held, state)


def _read_x86_64(info: task_pb2.ThreadInfoX86, who: str) -> Thread:
    x86_64.check_mode(info.gpregs, who)
    state = x86_64.floating_point(info.fpregs, len(X86_64.vectors))
    values = {number: getattr(info.gpregs, name) for number, name in enumerate(_NAMES)}
    registers = Registers(info.gpregs.ip, values | _numbered(X86_64.vectors, state))
    return Thread(registers, state, info.gpregs.fs_base + ABOVE_POINTER[x86_64.NAME], info.clear_tid_addr)


def _read_aarch64(info: task_pb2.ThreadInfoAarch64, who: str) -> Thread:
    aarch64.check_mode(info.gpregs, who)
    state = aarch64.floating_point(info.fpsimd, len(AARCH64.vectors))
    values = dict(enumerate([*info.gpregs.regs, info.gpregs.sp]))
    registers = Registers(info.gpregs.pc, values | _numbered(AARCH64.vectors, state))
    return Thread(registers, state, info.tls + ABOVE_POINTER[aarch64.NAME], info.clear_tid_addr)


def _numbered(vectors: range, state: FloatingPoint) -> dict[int, int]:
    return dict(zip(vectors, state.vectors, strict=True))
