"""Commands that move nothing: `imgproxy certs`, and `imgproxy hook`, which criu runs."""

from pathlib import Path
from typing import Annotated

import typer

from imgnode.command_line import run_program


def certs(
    directory: Annotated[Path, typer.Argument(help="Where the files go; made if it is missing.")],
    nodes: Annotated[list[str], typer.Argument(help="Host names or addresses, as they are written after --to.")],
    days: Annotated[int, typer.Option(help="How long they are valid.")] = 365,
) -> None:
    """Make a CA and a certificate for each node."""

    def main() -> int:
        from imgnode import certs as certificates  # for this command only: it is slow to import

        certificates.run(directory, nodes, days)
        return 0

    raise typer.Exit(run_program("imgproxy", False, main))


def hook() -> None:
    """The action script of criu dump (criu runs it; as a program without arguments: imgproxy-hook)."""
