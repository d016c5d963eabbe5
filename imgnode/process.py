"""Waiting for processes in trio: their end shows on a pidfd, so nothing polls.

The facts themselves (who, whose child, how much memory, which sockets) are `imgnode.proc`, which the
action-script hook uses without trio; here they run in a thread where they scan.
"""

import os
from collections.abc import Iterable

import trio

from imgnode import proc
from imgnode.proc import ProcessId


async def tree(pid: int) -> list[ProcessId]:
    """`proc.tree` in a thread: `pid` and all its descendants, root first.

    ProcessLookupError if the root is gone.
    """
    return await trio.to_thread.run_sync(proc.tree, pid)


async def wait_dead(processes: Iterable[ProcessId], deadline: float) -> None:
    """Return when all are dead (or zombies).

    trio.TooSlowError if one lives at `deadline`, a time of trio's clock.
    """
    with trio.fail_at(deadline):
        await trio.lowlevel.checkpoint()
        for process in processes:
            await _ended(process)


async def watch(pid: int) -> None:
    """Return when the process that has this pid now ends; at once if nobody has it."""
    await trio.lowlevel.checkpoint()
    try:
        process = proc.identify(pid)
    except ProcessLookupError:
        return
    await _ended(process)


async def _ended(process: ProcessId) -> None:
    fd = proc.open_pidfd(process)
    if fd is None:
        return
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)
