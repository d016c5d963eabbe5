"""Threads in core images of both ISAs."""

import pytest

from transform.errors import TransformError
from transform.images.proto import task_pb2
from transform.isa.thread import FloatingPoint, Rounding
from transform.popcorn.cores import Thread, read_thread, write_thread
from transform.popcorn.unwind import Registers

pytestmark = pytest.mark.t0
STATE = FloatingPoint(Rounding.DOWN, True, 5)
X86 = Thread(Registers(0x5005, {number: 100 + number for number in [*range(16), *range(17, 33)]}), STATE, 0x9120, 0x77)
ARM = Thread(Registers(0x5008, {number: 100 + number for number in [*range(32), *range(64, 96)]}), STATE, 0x9120, 0x77)


def test_x86_64() -> None:
    core = task_pb2.Core()
    core.ti_aarch64.tls = 1
    write_thread(core, X86, "x86-64")
    info = core.thread_info
    assert (core.mtype, core.HasField("ti_aarch64")) == (task_pb2.Core.X86_64, False)
    registers = info.gpregs
    assert (registers.ip, registers.ax, registers.dx, registers.cx, registers.bx) == (0x5005, 100, 101, 102, 103)
    assert (registers.si, registers.di, registers.bp, registers.sp, registers.r8) == (104, 105, 106, 107, 108)
    assert (registers.r15, registers.fs_base, registers.cs, registers.orig_ax) == (115, 0x9000, 0x33, 2**64 - 1)
    assert list(info.fpregs.xmm_space[:5]) == [117, 0, 0, 0, 118]
    assert info.clear_tid_addr == 0x77 and len(info.tls) == 3
    read = read_thread(core, "x86-64", "thread")
    assert (read.registers, read.local, read.clear_tid) == (X86.registers, 0x9120, 0x77)
    assert (read.floating_point.rounding, read.floating_point.flush, read.floating_point.raised) == (
        Rounding.DOWN,
        True,
        5,
    )


def test_aarch64() -> None:
    core = task_pb2.Core()
    core.thread_info.clear_tid_addr = 1
    write_thread(core, ARM, "aarch64")
    info = core.ti_aarch64
    assert (core.mtype, core.HasField("thread_info")) == (task_pb2.Core.AARCH64, False)
    assert list(info.gpregs.regs) == [100 + number for number in range(31)]
    assert (info.gpregs.sp, info.gpregs.pc, info.tls, info.clear_tid_addr) == (131, 0x5008, 0x9110, 0x77)
    assert list(info.fpsimd.vregs) == [word for number in range(64, 96) for word in (100 + number, 0)]
    read = read_thread(core, "aarch64", "thread")
    assert (read.registers, read.local, read.clear_tid) == (ARM.registers, 0x9120, 0x77)


def test_code_of_32_bits_is_refused() -> None:
    core = task_pb2.Core()
    write_thread(core, X86, "x86-64")
    core.thread_info.gpregs.cs = 0x23
    with pytest.raises(TransformError, match="thread 9: runs 32-bit code"):
        read_thread(core, "x86-64", "thread 9")
