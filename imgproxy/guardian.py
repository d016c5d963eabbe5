"""Traces a process for `imgproxy trap` and `imgproxy spawn`, in a process of its own, which outlives them.

    python -m imgproxy.guardian FD

A process cannot have breakpoints, or be stepped, without harm if its tracer is killed (`imgnode.ptrace`). What a
person, a time-out or a supervisor kills is the command; this is its guardian. It is in a session of its own, heeds no
signal that ends commands, has next to no memory, and does one thing in less than a deadline's time. FD is a socket to
the command. If that ends before it has taken note that all is well, everything is undone, and the process runs on: also
if a CRIU that the command had started holds it then, which stops it again when it lets it go.

    command   order: a line of JSON    hold                     keep
    guardian             ready: all are at points    stopped          (ends)

It starts in 50 ms, of which the process is stopped for none. The standard library only.
"""

import fcntl
import json
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from imgnode.ptrace import Gone
from imgproxy.stop_points import Points
from imgproxy.traced_start import NotStarted, start
from imgproxy.tracing import Tracing, Unstoppable

#: What wakes us: a thread has stopped, the command has said something or is gone.
_WAKING = frozenset({signal.SIGCHLD, signal.SIGIO})
#: Signals that end commands and are not meant for us.
_UNHEEDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE)
#: So long at a time without a look at anything: a signal may be for two events.
_LONGEST_PAUSE = 1.0


class CommandGone(Exception):
    """Whoever gave the order is no more."""


class Command:
    """The socket to the command."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)
        self._lines = self._socket.makefile("r", encoding="utf-8")
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_ASYNC)

    def line(self) -> str:
        """The next one. CommandGone."""
        line = self._lines.readline()
        if not line.endswith("\n"):
            raise CommandGone
        return line.strip()

    def tell(self, **facts: object) -> None:
        """Say something. CommandGone."""
        try:
            self._socket.sendall(json.dumps(facts).encode() + b"\n")
        except OSError as error:
            raise CommandGone from error

    def check(self) -> None:
        """CommandGone if it is. It says nothing before it was told something."""
        with suppress(BlockingIOError):
            if not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT):
                raise CommandGone


class Guardian:
    """One order, from its beginning to its end."""

    def __init__(self, command: Command, order: Mapping[str, Any]) -> None:
        self._command, self._order = command, order
        self._end = math.inf
        self._points = Points.from_plain(order["points"])

    def run(self) -> None:
        """Do it, and tell what became of it."""
        try:
            if "words" in self._order:
                self._spawn()
            else:
                self._trap(Tracing(self._order["pid"], self._points, self._pause))
        except (FileNotFoundError, ProcessLookupError):
            self._fail("the process has ended")
        except (Unstoppable, NotStarted, Gone, OSError) as error:
            self._fail(str(error))
        except CommandGone:
            return

    def _fail(self, reason: str) -> None:
        with suppress(CommandGone):
            self._command.tell(failed=reason)

    def _pause(self) -> None:
        """Until something has happened, perhaps. Unstoppable at the deadline; CommandGone."""
        left = self._end - time.monotonic()
        if left <= 0:
            raise Unstoppable("not all threads have come to a point in time")
        signal.sigtimedwait(_WAKING, min(left, _LONGEST_PAUSE))
        self._command.check()

    def _trap(self, tracing: Tracing) -> None:
        try:
            begun = self._begin()
            tracing.seize()
            self._to_points(tracing, begun)
        finally:
            tracing.release()
            tracing.close()

    def _begin(self) -> float:
        begun = time.monotonic()
        self._end = begun + self._order["deadline"]
        return begun

    def _to_points(self, tracing: Tracing, begun: float) -> None:
        tracing.drive()
        took = time.monotonic() - begun
        points = [[one.tid, str(one.point.kind), one.point.frames] for one in tracing.threads.values() if one.point]
        self._command.tell(ready=tracing.pid, seconds=took, hits=tracing.hits, points=points)
        self._command.line()
        with tracing.stopping():
            tracing.hold()
            self._command.tell(stopped=tracing.pid)
            self._command.line()

    def _spawn(self) -> None:
        tracee = start(self._order["program"], self._order["words"], self._pause, _UNHEEDED)
        tracing = Tracing(tracee.tid, self._points, self._pause)
        try:
            tracing.adopt(tracee).running = False
            tracing.run_to(self._order["start"])
            begun = self._begin()
            self._to_points(tracing, begun)
        finally:
            tracing.release()
            tracing.close()


def main() -> None:
    """Take an order from the socket that is named on the command line."""
    for number in _UNHEEDED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAKING)
    command = Command(int(sys.argv[1]))
    Guardian(command, json.loads(command.line())).run()


if __name__ == "__main__":
    main()
