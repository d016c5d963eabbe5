"""x86-64's core images. Registers: CRIU's images/core-x86.proto; MXCSR: Intel's manual, volume 1, chapter 10.2.3.

The stub (toolchain/runtime) is called: its return address is on the stack. It keeps number and arguments in the
registers in which they came, but for the last three, which lie in r10, r8 and r9 when the instruction is reached.
"""

from collections.abc import Callable
from dataclasses import replace

from transform.errors import TransformError
from transform.images.proto import task_pb2
from transform.isa.pair import Executable
from transform.isa.thread import VECTORS, FloatingPoint, Place, Rounding, Thread

NAME = "x86-64"
MACHINE = task_pb2.Core.X86_64
SYSCALL_LENGTH = 2
"""Bytes of the `syscall` instruction."""

_CODE, _DATA, _FLAGS = 0x33, 0x2B, 0x202
_NO_CALL = 2**64 - 1
_X87_DEFAULT, _MXCSR_DEFAULT, _MXCSR_MASK = 0x37F, 0x1F80, 0xFFFF
_X87_AND_SSE = 3
_ROUNDING = {0: Rounding.NEAREST, 1: Rounding.DOWN, 2: Rounding.UP, 3: Rounding.ZERO}
_ROUNDING_AT, _FLUSH_AT = 13, 15
_RAISED = {0: 0, 1: 7, 2: 1, 3: 2, 4: 3, 5: 4}
"""Exception flags of MXCSR, by bit, and where FPSR has them."""
_NATIVE = 1

Read = Callable[[int], int]
"""Eight bytes of the process's memory at an address."""


def read_thread(core: task_pb2.Core, executable: Executable, read: Read, who: str) -> Thread:
    """What the core image says, at a site of `executable`. TransformError, saying `who`, if it stands elsewhere."""
    info = core.thread_info
    registers = info.gpregs
    check_mode(registers, who)
    place, site = executable.place(registers.ip, SYSCALL_LENGTH, registers.ax, who)
    common = Thread(
        place=place,
        site=site.id,
        frame=registers.bp,
        stack=registers.sp,
        thread_pointer=registers.fs_base,
        clear_tid=info.clear_tid_addr,
        result=registers.ax,
        second_result=registers.dx,
        floating_point=floating_point(info.fpregs),
    )
    if place is Place.AFTER_CALL:
        return common
    call = (registers.r12, registers.r13, registers.r14, registers.r15, registers.r10, registers.r8, registers.r9)
    return replace(common, stack=registers.sp + 8, link=read(registers.sp), call=call)


def write_thread(core: task_pb2.Core, thread: Thread, executable: Executable) -> dict[int, int]:
    """Put it into a core image; what must be written to the process's memory besides, 8 bytes at each address."""
    write_state(core, thread.clear_tid, _registers(thread, executable), thread.floating_point)
    return {} if thread.place is Place.AFTER_CALL else {thread.stack - 8: thread.link}


def check_mode(registers: task_pb2.RegistersX86, who: str) -> None:
    """TransformError for 32-bit code."""
    if registers.mode not in (0, _NATIVE) or registers.cs != _CODE:
        raise TransformError(f"{who}: runs 32-bit code, which cannot change ISA")


def write_state(core: task_pb2.Core, clear_tid: int, registers: task_pb2.RegistersX86, state: FloatingPoint) -> None:
    """Make it a core image of this ISA, of a thread with these registers."""
    core.mtype = MACHINE
    info = core.thread_info
    info.clear_tid_addr = clear_tid
    info.gpregs.CopyFrom(registers)
    info.fpregs.CopyFrom(_fp_registers(state))
    for number in (12, 13, 14):
        info.tls.add(
            entry_number=number,
            base_addr=0,
            limit=0,
            seg_32bit=False,
            contents_h=False,
            contents_l=False,
            read_exec_only=True,
            limit_in_pages=False,
            seg_not_present=True,
            usable=False,
        )


def in_user_code(ip: int, sp: int, fs_base: int, **general: int) -> task_pb2.RegistersX86:
    """The registers of a thread that makes no system call; general ones that are not given are 0."""
    names = ("r15", "r14", "r13", "r12", "bp", "bx", "r11", "r10", "r9", "r8", "ax", "cx", "dx", "si", "di")
    return task_pb2.RegistersX86(
        **(dict.fromkeys((*names, "gs_base", "ds", "es", "fs", "gs"), 0) | general),
        orig_ax=_NO_CALL,
        ip=ip,
        cs=_CODE,
        flags=_FLAGS,
        sp=sp,
        ss=_DATA,
        fs_base=fs_base,
        mode=_NATIVE,
    )


def _registers(thread: Thread, executable: Executable) -> task_pb2.RegistersX86:
    registers = in_user_code(
        executable.address_of(thread.site, thread.place, SYSCALL_LENGTH),
        thread.stack if thread.place is Place.AFTER_CALL else thread.stack - 8,
        thread.thread_pointer,
        bp=thread.frame,
        ax=thread.result,
        dx=thread.second_result,
    )
    if thread.place is Place.BEFORE_SYSCALL:
        names = ("r12", "r13", "r14", "r15", "di", "si", "dx")
        for name, value in zip(names, thread.call, strict=True):
            setattr(registers, name, value)
    return registers


def floating_point(registers: task_pb2.FpRegistersX86, count: int = VECTORS) -> FloatingPoint:
    """Control, status and the first `count` of the 16 vectors."""
    control, words = registers.mxcsr, registers.xmm_space
    raised = sum(1 << there for here, there in _RAISED.items() if control >> here & 1)
    vectors = [sum(words[4 * one + word] << 32 * word for word in range(4)) for one in range(count)]
    return FloatingPoint(
        rounding=_ROUNDING[control >> _ROUNDING_AT & 3],
        flush=bool(control >> _FLUSH_AT & 1),
        raised=raised,
        vectors=tuple(vectors),
    )


def _fp_registers(state: FloatingPoint) -> task_pb2.FpRegistersX86:
    rounding = next(bits for bits, meaning in _ROUNDING.items() if meaning is state.rounding)
    raised = sum(1 << here for here, there in _RAISED.items() if state.raised >> there & 1)
    control = _MXCSR_DEFAULT | rounding << _ROUNDING_AT | state.flush << _FLUSH_AT | raised
    words = [value >> 32 * word & 0xFFFFFFFF for value in state.vectors for word in range(4)]
    return task_pb2.FpRegistersX86(
        cwd=_X87_DEFAULT,
        swd=0,
        twd=0,
        fop=0,
        rip=0,
        rdp=0,
        mxcsr=control,
        mxcsr_mask=_MXCSR_MASK,
        st_space=[0] * 32,
        xmm_space=[*words, *[0] * (64 - len(words))],
        padding=[0] * 24,
        xsave=task_pb2.XsaveX86(xstate_bv=_X87_AND_SSE, ymmh_space=[0] * 64),
    )
