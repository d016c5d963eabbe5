"""Runs the tests under a parent that buries orphans at once.

A restored process is nobody's child: init adopts it, and when it is killed for the next migration its pid is free only
after init has reaped it. On some machines that takes seconds, in some containers forever. So pytest goes on in a child,
and its original process becomes the subreaper of everything that the tests start.
"""

import ctypes
import os
import signal

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def continue_under_a_subreaper() -> None:
    """Return in a child process; the caller's process only waits, and ends as the child does."""
    child = os.fork()
    if child == 0:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        return
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the child too, which reports and ends
    pid, status = os.wait()
    while pid != child:
        pid, status = os.wait()
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _prctl(option: int, argument: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")
