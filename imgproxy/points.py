"""A process tree that changes ISA in a migration: brought to where it can, right before `criu dump`, and let go of if
it stays here.

Each process is trapped (`imgproxy.trap`): all its threads stand at equivalence points, and it is stopped as by SIGSTOP,
which `criu dump` takes as it is, and puts into its image. It was we who stopped it, so the change of ISA has it run
there: it is told the pids. If the process is not given up, or we die, its guardian has it continue.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass

import trio

from imgnode import proc
from imgproxy.trap import NotStopped, check_process, status_of, trap
from imgwire.errors import UsageError


@dataclass
class Standing:
    """A tree that is stopped. `given_up`: it is the destination's, and must not continue here."""

    given_up: bool = False


class _RunsOn(Exception):
    """It continues here."""


def check_tree(pid: int) -> None:
    """UsageError if a process of the tree cannot be brought to points. Blocking."""
    for task in alive(pid):
        check_process(task)


@asynccontextmanager
async def standing(pid: int, resumed: set[int]) -> AsyncIterator[Standing]:
    """The tree under `pid` stands at points while the block runs, and continues after it unless it is given up.

    `resumed`: gets the pids, in their own namespaces, of those that ran before. UsageError if one comes to no points.
    """
    state = Standing()
    with suppress(_RunsOn):
        async with AsyncExitStack() as stack:
            held: set[int] = set()
            while new := [task for task in await trio.to_thread.run_sync(alive, pid) if task not in held]:
                for task in new:
                    await _hold(stack, task, resumed)
                    held.add(task)
            yield state
            if not state.given_up:
                raise _RunsOn


async def _hold(stack: AsyncExitStack, task: int, resumed: set[int]) -> None:
    ran = not status_of(task)["State"].startswith("T")
    try:
        await stack.enter_async_context(trap(task))
    except NotStopped as error:
        raise UsageError(f"nothing was frozen: process {task} came to no point to change ISA at: {error}") from error
    if ran:
        resumed.add(proc.innermost_pid(task))


def alive(pid: int) -> list[int]:
    """The processes of a tree, without those that have ended."""
    return [task.pid for task in proc.tree(pid) if not status_of(task.pid)["State"].startswith(("Z", "X"))]
