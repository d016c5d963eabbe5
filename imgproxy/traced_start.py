"""Starts a program that is traced before its first instruction.

It is in a session of its own, with our standard streams, and with signals as a program expects them.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterable

from imgnode.ptrace import EVENT_EXEC, FOLLOW, Tracee, wait


class NotStarted(Exception):
    """The program could not be started; why is on stderr."""


def start(program: str, words: list[str], pause: Callable[[], None], unheeded: Iterable[int] = ()) -> Tracee:
    """The program as a process, stopped before its first instruction. `pause` waits until something may have happened;
    `unheeded`: signals that we ignore, and it should not. NotStarted; PermissionError."""
    pid, gate = _child(program, words, unheeded)
    try:
        tracee = Tracee.seize(pid, FOLLOW)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        os.close(gate)
    while (found := wait(pid, block=False)) is None or found[1].event != EVENT_EXEC:
        if found is None:
            pause()
        elif found[1].ended:
            raise NotStarted(f"{program}: not started")
        else:
            tracee.resume(0 if found[1].event else found[1].signal)
    return tracee


def _child(program: str, words: list[str], unheeded: Iterable[int]) -> tuple[int, int]:
    """A process that waits until the other end of a pipe is closed to become the program: its pid, and that end."""
    inner, outer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(inner)
        return pid, outer
    os.close(outer)
    os.setsid()
    for number in unheeded:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.read(inner, 1)
    try:
        os.execv(program, words)
    except OSError as error:
        print(f"imgproxy: {program}: {error.strerror}", file=sys.stderr, flush=True)
        os._exit(127)
