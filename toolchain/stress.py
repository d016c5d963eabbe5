"""Proves by trying that a program keeps nothing outside of its frames: stops it at thousands of points, overwrites all
that must not matter there, and lets it go on. Its output must not change.

    python -m toolchain.stress [--stops N] [--free SECONDS] [--seed N] PROGRAM ARGUMENTS

Overwritten are, behind a call, every register but pc, sp, fp and those that results come in; at a system call, every
one but those that it needs; and always the stack below sp. Bursts of stops, at each point that a thread comes to, take
turns with times in which it runs freely, so that stops are spread over the run. The exit code is the program's.
"""

import argparse
import os
import random
import signal
import sys
import time
from pathlib import Path

from imgnode.ptrace import NATIVE, X86_64, Gone
from imgproxy.program_points import read_program
from imgproxy.stop_points import Kind
from imgproxy.traced_start import start
from imgproxy.tracing import Thread, Tracing
from imgwire.errors import UsageError

#: Stops if nothing else is said.
STOPS = 1000
#: Stops of a burst, at most; and seconds of running freely in between, at most: mostly it is far less.
BURST = 100
FREE = 0.01
#: Bytes below sp that are overwritten: deeper than any leaf goes, and than most functions that were called before.
DEPTH = 16384
_PATTERN = b"\xa5" * DEPTH
#: Registers that keep what they hold, by what a thread is at. x86-64's system registers are no program's.
_SYSTEM = "orig_rax cs ss fs_base gs_base ds es fs gs eflags" if NATIVE is X86_64 else "pstate"
_FRAME = "rip rsp rbp" if NATIVE is X86_64 else "pc sp x29"
_RESULTS = "rax rdx" if NATIVE is X86_64 else "x0 x1"
_CALL = (
    "rax rdi rsi rdx r10 r8 r9 r12 r13 r14 r15"
    if NATIVE is X86_64
    else "x0 x1 x2 x3 x4 x5 x6 x7 x8 x20 x21 x22 x23 x24 x25 x26 x30"
)
#: Bytes of the floating-point set that are vector registers, and of those the ones that results come in: two.
_VECTORS = (160, 416) if NATIVE is X86_64 else (0, 512)
_VECTOR_RESULTS = 32
#: Carry, parity, adjust, zero, sign, overflow; N, Z, C, V.
_FLAGS = ("eflags", 0x8D5) if NATIVE is X86_64 else ("pstate", 0xF << 28)


class Stress:
    """One run of a program under stress."""

    def __init__(self, tracing: Tracing, stops: int, free: float, seed: int) -> None:
        self.left = stops
        self._longest = free
        self.places: set[int] = set()  #: where it was stopped
        self._tracing = tracing
        self._random = random.Random(seed)
        self._stacks: dict[int, range] = {}

    def run(self) -> None:
        """Stop it so many times, and let it run to its end. Gone at its end."""
        while self.left:
            with self._tracing.planted():
                self._burst(min(self.left, self._random.randint(1, BURST)))
                self._tracing.stop_all()
            self._free(time.monotonic() + self._random.random() ** 4 * self._longest)
        while True:
            self._free(time.monotonic() + 1)

    def _burst(self, stops: int) -> None:
        until = self.left - stops
        while self.left > until:
            tracing = self._tracing
            tracing.look(tracing.standing())
            for thread in tracing.standing():
                if thread.point and self.left:
                    self._scribble(thread, thread.point.kind)
                tracing.go_on(thread)
            tracing.expect()

    def _free(self, end: float) -> None:
        tracing = self._tracing
        while (left := end - time.monotonic()) > 0:
            for thread in tracing.standing():
                thread.go()
            tracing.take_any() or signal.sigtimedwait({signal.SIGCHLD}, left)
        tracing.stop_all()

    def _scribble(self, thread: Thread, kind: Kind) -> None:
        self.left -= 1
        registers = thread.tracee.registers()
        self.places.add(registers[NATIVE.pc])
        kept = f"{_SYSTEM} {_FRAME} {_RESULTS if kind is Kind.SITE else _CALL}".split()
        values = [
            old if name in kept else self._random.getrandbits(64)
            for name, old in zip(NATIVE.names, registers, strict=True)
        ]
        if kind is Kind.SITE:
            values[NATIVE.names.index(_FLAGS[0])] ^= _FLAGS[1] & self._random.getrandbits(32)
        thread.tracee.set_registers(values)
        vectors = thread.tracee.floating()
        first = _VECTORS[0] + (_VECTOR_RESULTS if kind is Kind.SITE else 0)
        vectors[first : _VECTORS[1]] = self._random.randbytes(_VECTORS[1] - first)
        thread.tracee.set_floating(bytes(vectors))
        self._scribble_stack(thread.tid, registers[NATIVE.sp])

    def _scribble_stack(self, tid: int, sp: int) -> None:
        stack = self._stacks.get(tid, range(0))
        if sp not in stack:
            stack = self._stacks[tid] = _mapping(self._tracing.pid, sp)
        size = min(DEPTH, sp - stack.start)
        self._tracing.write(sp - size, _PATTERN[:size])


def _mapping(pid: int, address: int) -> range:
    """The addresses that are mapped together with one."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        first, last = (int(word, 16) for word in line.split()[0].split("-"))
        if first <= address < last:
            return range(first, last)
    raise Gone(f"no stack at {address:#x}")


def stress(words: list[str], stops: int, free: float, seed: int) -> int:
    """Run a program under stress, and say on stderr what was done; its exit code. UsageError."""
    points = read_program(Path(words[0])).points
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})

    def pause() -> None:
        signal.sigtimedwait({signal.SIGCHLD}, 1.0)

    tracee = start(words[0], words, pause)
    tracing = Tracing(tracee.tid, points, pause)
    tracing.adopt(tracee).running = False
    stressing = Stress(tracing, stops, free, seed)
    try:
        stressing.run()
    except Gone:
        assert tracing.end is not None
    finally:
        tracing.close()
    done = stops - stressing.left
    print(f"{done} stops at {len(stressing.places)} of {len(points.addresses)} points", file=sys.stderr)
    return os.waitstatus_to_exitcode(tracing.end.status if tracing.end else 1 << 8)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m toolchain.stress", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--stops", type=int, default=STOPS, help="how many (%(default)s)")
    parser.add_argument("--free", type=float, default=FREE, help="longest time between bursts of them (%(default)s s)")
    parser.add_argument("--seed", type=int, default=1, help="what their moments and the bytes are drawn from")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="PROGRAM ARGUMENTS")
    given = parser.parse_args()
    words = given.words[1:] if given.words[:1] == ["--"] else given.words
    try:
        if not words:
            raise UsageError("which program?")
        return stress(words, given.stops, given.free, given.seed)
    except UsageError as error:
        print(f"stress: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
