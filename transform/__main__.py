"""The `imgtransform` command: transforms on a directory of images, and images as JSON.

Two forms: `imgtransform DIR_IN DIR_OUT [options]` and `imgtransform show FILE`. "show" is looked for before the options
are parsed, so that the first form needs no word of its own. What goes wrong is said in one line on stderr, exit code 1.
"""

import json
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from transform.chain import Chain
from transform.errors import TransformError
from transform.offline import transform_directory
from transform.options import transforms
from transform.page_counts import PageCounts
from transform.show import show_file


def run(
    dir_in: Annotated[Path, typer.Argument(help="Images of a full dump.", metavar="DIR_IN")],
    dir_out: Annotated[Path, typer.Argument(help="Made anew, or an empty directory.", metavar="DIR_OUT")],
    map_path: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD:NEW", help="Open files, directories and sockets below OLD are below NEW."),
    ] = None,
    tcp_listen_remap: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD:NEW", help="TCP sockets that listen on port OLD listen on NEW."),
    ] = None,
    arch: Annotated[str, typer.Option(help="x86-64 or aarch64: the ISA that the process changes to.")] = "",
    binaries: Annotated[Path | None, typer.Option(help="With --arch: DIR/bin has both executables.")] = None,
) -> None:
    """Copy the images of a dump from DIR_IN to DIR_OUT, transformed. `imgtransform show FILE` prints one as JSON."""
    chain = Chain(transforms(map_path or (), tcp_listen_remap or (), arch, binaries)).followed_by(PageCounts())
    transform_directory(dir_in, dir_out, chain)
    for warning in chain.warnings:
        print(f"imgtransform: {warning}", file=sys.stderr)


def show(
    file: Annotated[Path, typer.Argument(help="An image, such as files.img.", metavar="FILE")],
    compact: Annotated[bool, typer.Option("--compact", help="One line instead of an indented text.")] = False,
) -> None:
    """Print an image as JSON."""
    print(json.dumps(show_file(file), indent=None if compact else 2))


def main() -> NoReturn:
    """Run the command with this process's arguments."""
    signal.signal(signal.SIGTERM, _terminated)
    arguments = sys.argv[1:]
    command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    if arguments[:1] == ["show"]:
        command.command()(show)
        _invoke(command, arguments[1:], "imgtransform show")
    command.command()(run)
    _invoke(command, arguments, "imgtransform")


def _invoke(command: typer.Typer, arguments: list[str], name: str) -> NoReturn:
    try:
        command(args=arguments, prog_name=name)
    except TransformError as error:
        sys.exit(f"imgtransform: {error}")
    except OSError as error:
        sys.exit(f"imgtransform: {error.filename or name}: {error.strerror}")
    sys.exit(0)


def _terminated(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
