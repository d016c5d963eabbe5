"""The command line of `imgproxy`."""

from pathlib import Path
from typing import Annotated

import trio
import typer

from imgnode import logs
from imgnode.addresses import parse_address
from imgnode.command_line import run_program
from imgproxy.dialer import Dialer
from imgproxy.handover import Decision
from imgproxy.session import SourceConfig, SourceSession
from transform.chain import Chain

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    directory: Annotated[Path, typer.Option("-D", "--images-dir")],
    to: Annotated[str, typer.Option()],
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="More to see.")] = 0,
) -> None:
    logs.configure(verbose)

    async def go() -> int:
        s = SourceSession(
            SourceConfig(Dialer(parse_address(to)), directory.absolute(), directory.absolute() / "journal"), Chain([])
        )
        async with s.opened() as n:
            await s.capture()
            if s.handover.decision is Decision.COMMITTED:
                await s.wait_running()
            print(s.handover.decision, s.handover.reason, s.handover.times, s.view.times, s.ingest.started_at)
        return 0

    raise typer.Exit(run_program("imgproxy", bool(verbose), lambda: trio.run(go)))
