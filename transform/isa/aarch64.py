"""aarch64's core images. Registers: CRIU's images/core-aarch64.proto; FPCR and FPSR: Arm's reference manual, D19.2.

The stub (toolchain/runtime) is called with number and arguments in x20 to x26, and returns to x30.
"""

from transform.errors import TransformError
from transform.images.proto import task_pb2
from transform.isa.pair import Executable
from transform.isa.thread import VECTORS, FloatingPoint, Place, Rounding, Thread

NAME = "aarch64"
MACHINE = task_pb2.Core.AARCH64
SYSCALL_LENGTH = 4
"""Bytes of the `svc` instruction."""

_REGISTERS, _VECTOR_WORDS = 31, 64
_FRAME, _LINK = 29, 30
_CALL = range(20, 27)
_ROUNDING = {0: Rounding.NEAREST, 1: Rounding.UP, 2: Rounding.DOWN, 3: Rounding.ZERO}
_ROUNDING_AT, _FLUSH_AT = 22, 24
_RAISED = 0x9F
_WORD = 0xFFFFFFFFFFFFFFFF
_COMPAT = 1 << 4
"""In pstate: 32-bit code."""


def read_thread(core: task_pb2.Core, executable: Executable, who: str) -> Thread:
    """What the core image says, at a site of `executable`. TransformError, saying `who`, if it stands elsewhere."""
    info = core.ti_aarch64
    registers = info.gpregs
    check_mode(registers, who)
    place, site = executable.place(registers.pc, SYSCALL_LENGTH, registers.regs[0], who)
    in_stub = place is not Place.AFTER_CALL
    return Thread(
        place=place,
        site=site.id,
        frame=registers.regs[_FRAME],
        stack=registers.sp,
        thread_pointer=info.tls,
        clear_tid=info.clear_tid_addr,
        result=registers.regs[0],
        second_result=registers.regs[1],
        link=registers.regs[_LINK] if in_stub else 0,
        call=tuple(registers.regs[number] for number in _CALL) if in_stub else (),
        floating_point=floating_point(info.fpsimd),
    )


def write_thread(core: task_pb2.Core, thread: Thread, executable: Executable) -> dict[int, int]:
    """Put it into a core image. Nothing else must be written to memory."""
    pc = executable.address_of(thread.site, thread.place, SYSCALL_LENGTH)
    registers = [0] * _REGISTERS
    registers[0], registers[1], registers[_FRAME] = thread.result, thread.second_result, thread.frame
    registers[_LINK] = pc if thread.place is Place.AFTER_CALL else thread.link
    if thread.place is Place.BEFORE_SYSCALL:
        for number, value in zip(_CALL, thread.call, strict=True):
            registers[number] = value
    in_user_code = task_pb2.RegistersAarch64(regs=registers, sp=thread.stack, pc=pc, pstate=0)
    write_state(core, thread.clear_tid, thread.thread_pointer, in_user_code, thread.floating_point)
    return {}


def check_mode(registers: task_pb2.RegistersAarch64, who: str) -> None:
    """TransformError for 32-bit code."""
    if registers.pstate & _COMPAT or len(registers.regs) != _REGISTERS:
        raise TransformError(f"{who}: runs 32-bit code, which cannot change ISA")


def write_state(
    core: task_pb2.Core, clear_tid: int, tls: int, registers: task_pb2.RegistersAarch64, state: FloatingPoint
) -> None:
    """Make it a core image of this ISA, of a thread with these registers."""
    core.mtype = MACHINE
    info = core.ti_aarch64
    info.clear_tid_addr, info.tls = clear_tid, tls
    info.gpregs.CopyFrom(registers)
    info.fpsimd.CopyFrom(_fp_registers(state))


def floating_point(registers: task_pb2.FpRegistersAarch64, count: int = VECTORS) -> FloatingPoint:
    """Control, status and the first `count` of the 32 vectors."""
    words = registers.vregs
    return FloatingPoint(
        rounding=_ROUNDING[registers.fpcr >> _ROUNDING_AT & 3],
        flush=bool(registers.fpcr >> _FLUSH_AT & 1),
        raised=registers.fpsr & _RAISED,
        vectors=tuple(words[2 * one] | words[2 * one + 1] << 64 for one in range(count)),
    )


def _fp_registers(state: FloatingPoint) -> task_pb2.FpRegistersAarch64:
    rounding = next(bits for bits, meaning in _ROUNDING.items() if meaning is state.rounding)
    words = [half for value in state.vectors for half in (value & _WORD, value >> 64)]
    return task_pb2.FpRegistersAarch64(
        vregs=[*words, *[0] * (_VECTOR_WORDS - len(words))],
        fpsr=state.raised,
        fpcr=rounding << _ROUNDING_AT | state.flush << _FLUSH_AT,
    )
