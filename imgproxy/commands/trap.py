"""`imgproxy trap` and `imgproxy spawn`: a process stopped where it can change ISA."""

from typing import Annotated

import typer

from imgnode import logs
from imgproxy.commands import options as given
from imgproxy.commands.running import run
from imgproxy.trap import DEADLINE, release, spawn, trap
from imgwire.errors import UsageError

Deadline = Annotated[float, typer.Option("--deadline", help="Seconds until all threads must have come to a point.")]


def trap_command(
    pid: Annotated[int, typer.Argument(help="The process; a program that hetcc has made.")],
    deadline: Deadline = DEADLINE,
    let_go: Annotated[bool, typer.Option("--release", help="Let it run on: the inverse, for spawn, too.")] = False,
    verbose: given.Verbose = 0,
) -> None:
    """Bring every thread of a running process to a point where it can change ISA, and stop it there."""
    logs.configure(verbose)

    async def main() -> int:
        if let_go:
            release(pid)
            return 0
        async with trap(pid, deadline) as stopped:
            print(stopped.line(), flush=True)
        return 0

    raise typer.Exit(run(verbose, main))


def spawn_command(
    context: typer.Context,
    at: Annotated[str, typer.Option("--at", help="The function that it must have come to.")] = "main",
    deadline: Deadline = DEADLINE,
    verbose: given.Verbose = 0,
) -> None:
    """Start a program (-- PROGRAM ARGUMENTS), run it until a point where it can change ISA, and stop it there."""
    logs.configure(verbose)

    async def main() -> int:
        if not context.args:
            raise UsageError("spawn: which program? imgproxy spawn -- PROGRAM ARGUMENTS")
        async with spawn(context.args, at, deadline) as stopped:
            print(stopped.line(), flush=True)
        return 0

    raise typer.Exit(run(verbose, main))
