"""Brings the threads of a process to equivalence points, and holds them there.

    seize        every thread is traced and stopped where it is; new ones are, from their start
    drive        those that are at no point run on, until each has come to a breakpoint at one
    hold         the process is stopped, as by SIGSTOP, and traced no more; or
    release      it runs on as if nothing had been

A thread comes to a point by itself, whatever the others do: waiting for a lock is a system call, or a loop with polls.
So those that are at one stand still while the others run. Breakpoints, because single steps would be 100 to 1,000 for a
thread, each with two changes of the process that runs: 10 us, but 1 ms where others want the processor, and a memcpy of
a GiB has millions. Signals are delivered as they come.

Why SIGSTOP is taken by a thread that is still traced: pending signals are delivered by number, and SIGUSR1 would have
its handler entered first. A stop that is in effect comes before all signals: so threads that are let go of stand still
where they are.
"""

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress

from imgnode import proc
from imgnode.ptrace import (
    EVENT_CLONE,
    EVENT_EXEC,
    EVENT_FORK,
    EVENT_STOP,
    EVENT_VFORK,
    FOLLOW,
    NATIVE,
    Gone,
    Stop,
    Tracee,
    Trap,
    wait,
)
from imgproxy.breakpoints import BEHIND, Breakpoints
from imgproxy.stop_points import Point, Points

#: Milliseconds between two looks at what nobody tells us: threads that were let go of stop within microseconds.
_LOOK = 1
#: The same for a CRIU that has frozen the process, and may take seconds.
_HELD = 20
#: Seconds for that, on a machine with much else to do.
_SETTLED = 10.0
_SIGTRAP_BIT = 1 << (signal.SIGTRAP - 1)


class Unstoppable(Exception):
    """It cannot be brought to points; the text is for a person."""


class Thread:
    """One thread that we trace. `signal`: what it gets when it runs next."""

    def __init__(self, tracee: Tracee) -> None:
        self.tracee = tracee
        self.tid = tracee.tid
        self.signal = 0
        self.running = True
        self.stepping = False  #: or stopped, and its step's SIGTRAP may still come
        self.over: int | None = None  #: the breakpoint that is lifted for its step
        self.point: Point | None = None

    def go(self, *, step: bool = False) -> None:
        """Run on, or execute one instruction."""
        number, self.signal = self.signal, 0
        self.running, self.stepping, self.point = True, step, None
        (self.tracee.step if step else self.tracee.resume)(number)


class Tracing:
    """All threads of a process, traced by this thread of ours. `pause` waits until something may have happened to one,
    and raises what ends the attempt: a deadline, a monitor that is gone."""

    def __init__(self, pid: int, points: Points, pause: Callable[[], None]) -> None:
        self.pid, self.points, self._pause = pid, points, pause
        self.threads: dict[int, Thread] = {}
        self.hits = 0  #: of breakpoints
        self.end: Stop | None = None  #: of the process
        self._pidfd = os.pidfd_open(pid)
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDWR)
        self._stood = self._state(pid) == "T"  #: somebody had stopped it before
        self._breakpoints = Breakpoints(self._memory, points.addresses)

    def close(self) -> None:
        """Close what is open; threads that are still traced are let go of when this process ends."""
        os.close(self._memory)
        os.close(self._pidfd)

    def read(self, address: int, size: int) -> bytes:
        """Bytes of its memory, fewer than asked for at the end of what is mapped."""
        for wanted in (size, min(size, -address % 4096)):
            with suppress(OSError, OverflowError):
                return os.pread(self._memory, wanted, address)
        return b""

    def write(self, address: int, data: bytes) -> None:
        """Change its memory. OSError where nothing is mapped."""
        os.pwrite(self._memory, data, address)

    def seize(self) -> None:
        """Trace and stop all threads. PermissionError; Gone."""
        while new := self._new():
            for tid in new:
                with suppress(Gone):
                    self.adopt(Tracee.seize(tid, FOLLOW))
            self.stop_all()
        self._check()

    def _new(self) -> list[int]:
        with suppress(FileNotFoundError):
            return [int(name) for name in os.listdir(f"/proc/{self.pid}/task") if int(name) not in self.threads]
        return []

    def adopt(self, tracee: Tracee) -> Thread:
        """Count one that is traced as ours."""
        thread = self.threads[tracee.tid] = Thread(tracee)
        return thread

    def _check(self) -> None:
        if not self.threads:
            raise Gone("the process has ended")

    def stop_all(self) -> None:
        """All threads stand where they are. Gone if the process ends before."""
        self._interrupt()
        while any(thread.running for thread in self.threads.values()):
            self._take_pending_trap(self.expect())

    def _interrupt(self) -> None:
        for thread in list(self.threads.values()):
            if thread.running:
                with suppress(Gone):
                    thread.tracee.interrupt()

    def _take_pending_trap(self, thread: Thread) -> None:
        """A thread that has just hit a breakpoint may be stopped before it is told that: let it be told."""
        if thread.tid in self.threads and not thread.running and _pending(self.pid, thread.tid) & _SIGTRAP_BIT:
            thread.running = True
            thread.tracee.resume()

    def run_to(self, start: int) -> None:
        """From a stop of all, until a thread is about to execute the instruction at an address; then all are stopped.
        Unstoppable: none does."""
        points, self._breakpoints = self._breakpoints, Breakpoints(self._memory, (start,))
        with self.planted():
            while not self.hits:
                for thread in self.standing():
                    thread.go()
                try:
                    self.expect()
                except Gone as error:
                    raise Unstoppable(f"it ended before that ({error})") from error
            self.stop_all()
        self._breakpoints = points

    def standing(self) -> list[Thread]:
        """The threads that do not run."""
        return [thread for thread in self.threads.values() if not thread.running]

    @contextmanager
    def planted(self) -> Iterator[None]:
        """There are breakpoints at all points."""
        try:
            self._breakpoints.plant()
            yield
        finally:
            self._breakpoints.lift()

    def drive(self) -> None:
        """From a stop of all, every thread to a point. Unstoppable; what `pause` raises; Gone."""
        self.look(self.threads.values())
        if all(thread.point for thread in self.threads.values()):
            return self._check()
        with self.planted():
            while not all(thread.point for thread in self.threads.values()):
                for thread in self.standing():
                    if thread.point is None:
                        self.go_on(thread)
                self.expect()
                self._check()
                self.look(self.standing())
        return None

    def look(self, threads: Iterable[Thread]) -> None:
        """See which of them are at points."""
        for thread in threads:
            if not thread.point and not thread.signal:
                place = self.points.place(thread.tracee.registers(), self.read)
                thread.point = place if isinstance(place, Point) else None

    def go_on(self, thread: Thread) -> None:
        """A thread that stands, maybe at a breakpoint, runs on: from a poll, at its target."""
        registers = thread.tracee.registers()
        pc = registers[NATIVE.pc]
        if pc in self.points.polls:
            registers[NATIVE.pc] = self.points.polls[pc]
            thread.tracee.set_registers(registers)
        elif pc in self._breakpoints.addresses:
            self._breakpoints.lift_one(pc)
            thread.over = pc
            thread.go(step=True)  # which may take long: a system call
            return
        thread.go()

    def expect(self, tid: int = -1) -> Thread:
        """Wait until a thread (-1: any) has stopped or ended, and take note of why. Gone if the process has ended.

        An end of the first thread is told only when all others' has been taken note of: so wait for any.
        """
        while (thread := self.take_any(tid)) is None:
            self._pause()
        return thread

    def take_any(self, tid: int = -1) -> Thread | None:
        """The same, or None if nothing has happened yet."""
        found = wait(tid, block=False)
        if found is None:
            return None
        thread = self.threads.get(found[0]) or self.adopt(Tracee(found[0]))
        self._take(thread, found[1])
        return thread

    def _take(self, thread: Thread, stop: Stop) -> None:
        if stop.ended:
            del self.threads[thread.tid]
            if not self.threads or thread.tid == self.pid:
                self.end = stop
                raise Gone(_end(stop))
            return
        thread.running = False
        if thread.over is not None and self._breakpoints.planted:
            self._breakpoints.plant_one(thread.over)
        thread.over = None
        if stop.event in (EVENT_FORK, EVENT_VFORK, EVENT_CLONE):
            self._meet(thread.tracee.message(), shares=stop.event != EVENT_FORK)
        elif stop.event == EVENT_EXEC:
            self._breakpoints.planted = False
            raise Unstoppable("it executes another program")
        elif not stop.event and not (stop.signal == signal.SIGTRAP and self._is_ours(thread)):
            thread.signal = stop.signal

    def _is_ours(self, thread: Thread) -> bool:
        """Whether a SIGTRAP is of our step, or of a breakpoint, at which it then is: not behind it."""
        trap = thread.tracee.trap()
        stepping, thread.stepping = thread.stepping, False
        if trap is not Trap.BREAKPOINT:
            return stepping and trap is Trap.STEP
        registers = thread.tracee.registers()
        registers[NATIVE.pc] -= BEHIND
        if registers[NATIVE.pc] not in self._breakpoints.addresses:
            return False
        self.hits += 1
        thread.tracee.set_registers(registers)
        return True

    def _meet(self, tid: int, *, shares: bool) -> None:
        """A thread is new; or a process, which is none of ours, and gets back what breakpoints have taken from it."""
        thread = self.threads.get(tid) or self.adopt(Tracee(tid))
        with suppress(Gone):
            while thread.running:
                self.expect(tid)
            if os.path.exists(f"/proc/{self.pid}/task/{tid}"):
                return
            if shares:
                raise Unstoppable(f"it has made a process, {tid}, that may share its memory")
            memory = os.open(f"/proc/{tid}/mem", os.O_RDWR)
            self._breakpoints.heal(memory)
            os.close(memory)
            del self.threads[tid]
            thread.tracee.detach()

    @contextmanager
    def stopping(self) -> Iterator[None]:
        """What is done within stops the process. If that fails, it continues, unless it was stopped before."""
        done = False
        try:
            yield
            done = True
        finally:
            if not done and not self._stood:
                self._have_continue()

    def _have_continue(self) -> None:
        """It runs on. Who has frozen it meanwhile, as CRIU does, found it stopped, and stops it again when it lets go:
        that is waited for, and taken back."""
        death = select.poll()
        death.register(self._pidfd)
        while not death.poll(0):
            if not self._is_held():
                self._send(signal.SIGCONT)
                if not self._is_held():
                    return
            death.poll(_HELD)

    def _is_held(self) -> bool:
        """Whether another than we traces the process."""
        with suppress(ProcessLookupError):
            return proc.tracer(self.pid) not in (0, os.getpid())
        return False

    def _send(self, number: int) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def hold(self) -> None:
        """All are at points: stop the process, trace it no more, and see that it stands. Unstoppable if somebody has
        it continue."""
        self._send(signal.SIGSTOP)
        first = next(iter(self.threads.values()))
        while not self._in_effect(first):
            pass
        self.drive()  # a signal that came with it may have led it away
        tids = list(self.threads)
        for thread in self.threads.values():
            thread.tracee.detach()
        self.threads.clear()
        self._stand(tids)

    def _in_effect(self, thread: Thread) -> bool:
        """Let a thread take one more signal: whether it has stopped because the process is."""
        thread.go()
        while (found := wait(thread.tid, block=False)) is None:
            self._pause()
        self._take(thread, found[1])
        return found[1].event == EVENT_STOP and found[1].signal != signal.SIGTRAP

    def _stand(self, tids: Sequence[int]) -> None:
        end = time.monotonic() + _SETTLED
        while any(self._state(tid) != "T" for tid in tids):
            if time.monotonic() > end:
                raise Unstoppable("it was stopped, and somebody had it continue")
            select.poll().poll(_LOOK)

    def _state(self, tid: int) -> str:
        try:
            with open(f"/proc/{self.pid}/task/{tid}/stat", encoding="utf-8", errors="replace") as file:
                return file.read().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError) as error:
            raise Gone("the process has ended") from error

    def release(self) -> None:
        """Let all run on, however long that takes. What cannot be stopped, in the kernel (state D) or dead, has nothing
        of ours, and is let go of when this process ends."""
        self._breakpoints.lift()
        self._interrupt()
        with suppress(Gone):
            while any(thread.running and self._state(thread.tid) not in "DZX" for thread in self.threads.values()):
                with suppress(Unstoppable):
                    thread = self.take_any()
                    if thread:
                        self._take_pending_trap(thread)
                    else:
                        select.poll().poll(_LOOK)
        for thread in self.standing():
            with suppress(Gone):
                thread.tracee.detach(thread.signal)
        self.threads.clear()


def _pending(pid: int, tid: int) -> int:
    """The signals that wait for one thread, as a mask."""
    try:
        with open(f"/proc/{pid}/task/{tid}/status", encoding="utf-8", errors="replace") as file:
            return next(int(line.split()[1], 16) for line in file if line.startswith("SigPnd:"))
    except (FileNotFoundError, ProcessLookupError):
        return 0


def _end(stop: Stop) -> str:
    code = os.waitstatus_to_exitcode(stop.status)
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
