"""What a CRIU that was killed leaves of itself.

At its start CRIU forks to try what the kernel does, and kills that child a moment later. Killed itself meanwhile, it
leaves a child that sleeps for ever, and keeps open what CRIU had open: the socket on which we wait for CRIU's end. Seen
with CRIU 4.2.1, at each start, whether or not it knows the kernel already (`fork_and_ptrace_attach` of criu/util.c).
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import structlog
import trio

from imgnode import proc
from imgnode.proc import ProcessId
from imgnode.process import wait_dead

_log = structlog.get_logger()


class Known(NamedTuple):
    """A CRIU, and what its orphans have in common with it."""

    process: ProcessId
    group: int
    words: list[str]  #: its command line


def known(pid: int) -> Known:
    """The CRIU that has this pid. ProcessLookupError if it is gone."""
    return Known(proc.identify(pid), proc.group(pid), proc.command_line(pid))


async def bury(criu: Known) -> None:
    """Return when that CRIU has ended, and its orphans with it."""
    await wait_dead([criu.process], math.inf)
    await trio.to_thread.run_sync(end_orphans, criu.group, lambda words: words == criu.words)


def end_orphans(group: int, called: Callable[[list[str]], bool]) -> None:
    """Kill what was forked by a dead CRIU of that process group, and has not become another program: `called` knows it
    by its command line. Whoever traces somebody is left alone: it is a CRIU at work. Blocking."""
    for process in proc.members(group, called):
        if not proc.traced_by(process.pid):
            _log.info("criu was killed as it tried what the kernel does: its child is ended, too", pid=process.pid)
            proc.kill_tree([process])
