"""`imgproxy recover`: what a crash left open is finished."""

from pathlib import Path
from typing import Annotated

import typer

from imgnode import logs
from imgproxy.commands import options as given
from imgproxy.commands.running import run
from imgproxy.recover import recover, unfinished


def recover_command(
    session: Annotated[
        str | None, typer.Argument(help="Id of one session; all that are unfinished without it.")
    ] = None,
    journal: given.JournalDirectory = None,
    directory: Annotated[Path | None, typer.Option("-D", "--images-dir", help="As given to imgproxy.")] = None,
    run_here: Annotated[
        bool, typer.Option("--run-here", help="Let a process that post-copy has lost there run on here.")
    ] = False,
    patience: Annotated[float, typer.Option(help="Seconds to try to reach each cache.")] = 60.0,
    verbose: given.Verbose = 0,
) -> None:
    """Finish what a crash left open: decide where the process runs, and tell the cache."""
    logs.configure(verbose)

    async def main() -> int:
        place = journal or (directory / "journal" if directory else given.default_journal())
        untold = 0
        for one in unfinished(place.absolute(), session):
            result = await recover(one, given.dialer_from_journal(one), patience, run_here=run_here)
            print(result.line())
            untold += not result.told
        return 1 if untold else 0

    raise typer.Exit(run(verbose, main))
