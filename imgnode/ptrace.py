"""Tracing threads by ptrace(2), for x86-64 and aarch64: what stops a process between two instructions, and no more.

Attached by PTRACE_SEIZE, which sends no signal and stops nothing. All calls for a thread must come from the thread that
seized it, so whoever traces is a program of its own (`imgproxy.guardian`), and this module keeps to the standard
library, to be there at once.

What outlives a tracer that is killed: breakpoints in the text, of course; but a thread that was single-stepped or has a
hardware breakpoint keeps trap flag or debug register, too, and the trap, with nobody to take it, kills the process
(tried). A thread that was only stopped runs on. So who does more than that must not be what a time-out kills.
"""

import ctypes
import os
import platform
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import ClassVar


class Request(IntEnum):
    """Of ptrace(2), as include/uapi/linux/ptrace.h has them."""

    CONT = 7
    SINGLESTEP = 9
    DETACH = 17
    GETEVENTMSG = 0x4201
    GETSIGINFO = 0x4202
    GETREGSET = 0x4204
    SETREGSET = 0x4205
    SEIZE = 0x4206
    INTERRUPT = 0x4207


#: Option of PTRACE_SEIZE: new processes and threads are traced from the start; a stop at execve.
FOLLOW = 0x2 | 0x4 | 0x8 | 0x10
#: Events in the status of a stop.
EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_STOP = 1, 2, 3, 4, 128
#: waitpid(2): threads, too.
WALL = 0x40000000
#: Register sets of elf.h.
_GENERAL, _FLOATING = 1, 2


#: si_code of a breakpoint instruction's SIGTRAP: SI_KERNEL on x86-64, TRAP_BRKPT on aarch64. A step has others, and a
#: step over a system call TRAP_BRKPT on x86-64, none on aarch64.
_BREAKPOINT = 0x80 if platform.machine() == "x86_64" else 1

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.ptrace.restype = ctypes.c_long
_LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]


class Trap(Enum):
    """What a SIGTRAP comes from."""

    BREAKPOINT = 1  #: an instruction that is one
    STEP = 2
    SENT = 3  #: kill(2)


class Gone(Exception):
    """The thread has ended, or is not stopped any more: it was killed."""


def _ptrace(request: Request, tid: int, address: int = 0, data: int = 0) -> None:
    if _LIBC.ptrace(request, tid, address, data) == -1:
        number = ctypes.get_errno()
        error = OSError(number, f"{request.name} of thread {tid}: {os.strerror(number)}")
        raise Gone(str(error)) if isinstance(error, ProcessLookupError) else error


class _Buffer(ctypes.Structure):
    """struct iovec."""

    _fields_: ClassVar = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]


@dataclass(frozen=True)
class Isa:
    """Where an ISA's registers lie: `names` in the order of the kernel's general set, 8 bytes each."""

    machine: str
    names: tuple[str, ...]
    pc: int
    sp: int
    fp: int
    result: int  #: of a system call

    def unpack(self, raw: bytes) -> list[int]:
        """The general set as numbers, in the order of `names`."""
        return list(struct.unpack(f"<{len(self.names)}Q", raw))


#: struct user_regs_struct of x86-64, and struct user_pt_regs of aarch64.
_X86_NAMES = ["r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi"]
_X86_NAMES += ["orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs"]
_ARM_NAMES = [f"x{number}" for number in range(31)] + ["sp", "pc", "pstate"]


def _isa(machine: str, names: Sequence[str], *places: str) -> Isa:
    return Isa(machine, tuple(names), *(names.index(place) for place in places))


X86_64 = _isa("x86_64", _X86_NAMES, "rip", "rsp", "rbp", "rax")
AARCH64 = _isa("aarch64", _ARM_NAMES, "pc", "sp", "x29", "x0")


def native() -> Isa:
    """This machine's. OSError for any other than the two."""
    for isa in (X86_64, AARCH64):
        if platform.machine() == isa.machine:
            return isa
    raise OSError(f"stopping processes at a point: not on {platform.machine()}")


NATIVE = native()
_GENERAL_SIZE = 8 * len(NATIVE.names)
#: Bytes of the floating-point set: fxsave's, or 32 vectors, status and control.
_FLOATING_SIZE = 512 if NATIVE is X86_64 else 32 * 16 + 16


@dataclass(frozen=True)
class Stop:
    """Why a thread has stopped, from the status of waitpid(2)."""

    status: int

    @property
    def ended(self) -> bool:
        """It is no more."""
        return not os.WIFSTOPPED(self.status)

    @property
    def signal(self) -> int:
        """The signal that would be delivered next if it is passed on; for an event, what that came with."""
        return os.WSTOPSIG(self.status)

    @property
    def event(self) -> int:
        """EVENT_STOP and others; 0 for a signal."""
        return self.status >> 16


class Tracee:
    """One thread that we trace. Methods other than `interrupt` want it stopped; Gone if it is not any more."""

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self._general = ctypes.create_string_buffer(_GENERAL_SIZE)
        self._vector = _Buffer(ctypes.addressof(self._general), _GENERAL_SIZE)

    @classmethod
    def seize(cls, tid: int, options: int) -> "Tracee":
        """Begin to trace; it runs on. PermissionError: not ours to trace, or somebody does already; Gone."""
        _ptrace(Request.SEIZE, tid, 0, options)
        return cls(tid)

    def interrupt(self) -> None:
        """Have it stop, with EVENT_STOP: between two instructions, or out of a system call that is then restarted."""
        _ptrace(Request.INTERRUPT, self.tid)

    def resume(self, number: int = 0) -> None:
        """Let it run, with a signal or none."""
        _ptrace(Request.CONT, self.tid, 0, number)

    def step(self, number: int = 0) -> None:
        """Let it execute one instruction, or with a signal that has a handler, enter that."""
        _ptrace(Request.SINGLESTEP, self.tid, 0, number)

    def detach(self, number: int = 0) -> None:
        """Trace it no more; it runs on, with a signal or none, if the process is not stopped."""
        _ptrace(Request.DETACH, self.tid, 0, number)

    def message(self) -> int:
        """What came with an event: with EVENT_CLONE, the new thread's id."""
        value = ctypes.c_ulong()
        _ptrace(Request.GETEVENTMSG, self.tid, 0, ctypes.addressof(value))
        return value.value

    def trap(self) -> Trap:
        """Where the SIGTRAP comes from that it stopped with."""
        info = ctypes.create_string_buffer(128)
        _ptrace(Request.GETSIGINFO, self.tid, 0, ctypes.addressof(info))
        code, sender = struct.unpack_from("<i4xi", info, 8)
        if code == _BREAKPOINT:
            return Trap.BREAKPOINT
        return Trap.STEP if code > 0 or sender == 0 else Trap.SENT

    def registers(self) -> list[int]:
        """The general set, in the order of `NATIVE.names`."""
        self._vector.length = _GENERAL_SIZE
        _ptrace(Request.GETREGSET, self.tid, _GENERAL, ctypes.addressof(self._vector))
        return NATIVE.unpack(self._general.raw)

    def set_registers(self, values: Sequence[int]) -> None:
        """Write the general set."""
        self._set(_GENERAL, struct.pack(f"<{len(values)}Q", *values))

    def floating(self) -> bytearray:
        """The floating-point set: struct user_fpregs_struct of x86-64, struct user_fpsimd_state of aarch64."""
        data = bytearray(_FLOATING_SIZE)
        vector = _Buffer(ctypes.addressof((ctypes.c_char * len(data)).from_buffer(data)), len(data))
        _ptrace(Request.GETREGSET, self.tid, _FLOATING, ctypes.addressof(vector))
        return data

    def set_floating(self, data: bytes) -> None:
        """Write it."""
        self._set(_FLOATING, bytes(data))

    def _set(self, kind: int, data: bytes) -> None:
        buffer = ctypes.create_string_buffer(data, len(data))
        vector = _Buffer(ctypes.addressof(buffer), len(data))
        _ptrace(Request.SETREGSET, self.tid, kind, ctypes.addressof(vector))


def wait(tid: int, *, block: bool) -> tuple[int, Stop] | None:
    """A stop or an end that was not told yet, of one thread or (-1) of any; None if there is none yet. Gone."""
    try:
        found, status = os.waitpid(tid, WALL | (0 if block else os.WNOHANG))
    except ChildProcessError as error:
        raise Gone(f"thread {tid} is not traced any more") from error
    return (found, Stop(status)) if found else None
