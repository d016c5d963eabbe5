"""Stops a process where it can change ISA: `imgproxy trap` for one that runs, `imgproxy spawn` for one that we start.

    async with trap(pid) as stopped:     # all its threads are at equivalence points, and it is stopped as by SIGSTOP
        ...                              # an error or our death in here, and it continues
    # left well: it stays stopped; `release`, or kill -CONT, lets it run on

What can be known beforehand is refused here. The tracing is the guardian's (`imgproxy.guardian`), which lives on if we
are killed, and then lets the process run on. It gets addresses only: reading a program's tables takes longer than it.
"""

import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from imgnode import proc
from imgproxy.program_points import Program, read_program
from imgwire.errors import UsageError

#: Seconds for all threads to come to a point, if nothing else is said. Measured: milliseconds; emulated, under load: 1.
DEADLINE = 10.0
_LINE_LIMIT = 1 << 24


class NotStopped(Exception):
    """The process did not come to points; it runs on. The text is for a person."""


@dataclass(frozen=True)
class Stopped:
    """A process that stands at equivalence points."""

    pid: int
    seconds: float  #: from the first thread's stop to the last one's arrival
    hits: int  #: of breakpoints; 0 if all threads were at points already
    points: tuple[tuple[int, str, int], ...]  #: of each thread: id, where, depth in frames

    def line(self) -> str:
        """For a person."""
        kinds = [kind for _, kind, _ in self.points]
        where = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return f"process {self.pid} is stopped after {self.seconds * 1000:.1f} ms; threads: {where}"


@asynccontextmanager
async def trap(pid: int, deadline: float = DEADLINE) -> AsyncIterator[Stopped]:
    """Bring all threads of a process to points, and stop it. UsageError for what cannot be trapped; NotStopped."""
    program = await trio.to_thread.run_sync(check_process, pid)
    async with _guarded({"pid": pid, "deadline": deadline, "points": program.points.plain()}) as stopped:
        yield stopped


@asynccontextmanager
async def spawn(words: Sequence[str], at: str = "main", deadline: float = DEADLINE) -> AsyncIterator[Stopped]:
    """Start a program, in a session of its own and with our standard streams, and stop it at the first points after it
    has come to a function. UsageError: it is none of hetcc's, or has no such function; NotStopped."""
    path = Path(words[0])
    program = await trio.to_thread.run_sync(read_program, path)
    if at not in program.functions:
        raise UsageError(f"{path}: has no function {at}")
    order = {"words": list(words), "program": str(path), "start": program.functions[at], "deadline": deadline}
    async with _guarded({**order, "points": program.points.plain()}) as stopped:
        yield stopped


def check_process(pid: int) -> Program:
    """The program of a process that can be trapped. UsageError, one line, for any other. Blocking."""
    try:
        status = status_of(pid)
        if status["Tgid"] != str(pid):
            raise UsageError(f"{pid} is a thread of process {status['Tgid']}: name that")
        if status["State"][0] in "ZX":
            raise UsageError(f"process {pid} has ended, and is a zombie: nothing is left to stop")
        if tracer := int(status["TracerPid"]):
            raise UsageError(f"process {pid} is traced by {tracer} ({_name(tracer)}): end that first")
        if int(status.get("Seccomp", "0")):
            raise UsageError(f"process {pid} is confined by seccomp, by numbers that differ by ISA: it cannot move")
        return read_program(Path(f"{proc.PROC}/{pid}/exe"))
    except ProcessLookupError:
        raise UsageError(f"there is no process {pid}") from None
    except PermissionError:
        raise UsageError(f"process {pid} is not ours to trace: it needs its user, or CAP_SYS_PTRACE") from None


def release(pid: int) -> None:
    """Let a process run on that `trap` or `spawn` have stopped. UsageError if it does not stand."""
    try:
        process = proc.identify(pid)
        status = status_of(pid)
    except ProcessLookupError:
        raise UsageError(f"there is no process {pid}") from None
    if not status["State"].startswith("T"):
        raise UsageError(f"process {pid} is not stopped: {status['State']}")
    proc.continue_tree([process])


def status_of(pid: int) -> dict[str, str]:
    """What /proc/PID/status says, by name. ProcessLookupError."""
    try:
        text = Path(f"{proc.PROC}/{pid}/status").read_text(errors="replace")
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, "no such process") from error
    return {name: value.strip() for name, _, value in (line.partition(":") for line in text.splitlines())}


def _name(pid: int) -> str:
    try:
        return status_of(pid)["Name"]
    except ProcessLookupError:
        return "gone"


@asynccontextmanager
async def _guarded(order: Mapping[str, Any]) -> AsyncIterator[Stopped]:
    ours, its = socket.socketpair()
    os.set_inheritable(its.fileno(), True)
    words = [sys.executable, "-m", "imgproxy.guardian", str(its.fileno())]
    with its:
        guardian = await trio.lowlevel.open_process(words, pass_fds=[its.fileno()], start_new_session=True)
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
    try:
        async with stream:
            lines = _Lines(stream)
            await lines.say(json.dumps(order))
            ready = await lines.hear("ready")
            await lines.say("hold")
            await lines.hear("stopped")
            points = tuple((tid, kind, frames) for tid, kind, frames in ready["points"])
            yield Stopped(ready["ready"], ready["seconds"], ready["hits"], points)
            await lines.say("keep")
    finally:
        with trio.CancelScope(shield=True):  # what it undoes is undone in milliseconds, and we say how it ended
            await guardian.wait()


class _Lines:
    """What guardian and command say to each other."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._rest = b""

    async def say(self, line: str) -> None:
        """One line."""
        try:
            await self._stream.send_all(line.encode() + b"\n")
        except trio.BrokenResourceError as error:
            raise NotStopped("the guardian of the process was killed") from error

    async def hear(self, name: str) -> dict[str, Any]:
        """The next one, which must have that in it. NotStopped."""
        while b"\n" not in self._rest:
            try:
                data = await self._stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data or len(self._rest) > _LINE_LIMIT:
                raise NotStopped("the guardian of the process was killed")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        if name not in said:
            raise NotStopped(f"not stopped: {said.get('failed', said)}")
        return said
