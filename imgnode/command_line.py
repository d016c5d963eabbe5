"""What the command lines of both programs share: option types, and how an error reaches the user.

A user sees one line that says what, where and what to do; `-v` shows where in the program it came from.
"""

import re
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated

import structlog
import trio
import typer

from imgnode.greeting import SessionRefused
from imgwire.errors import RemoteProtocolError, UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT]?)(i?)B?")
_POWER = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4}


class Wire(StrEnum):
    """What proxy and cache speak with each other."""

    LINK = "link"  #: our own protocol
    CRIU = "criu"  #: that of the original image-proxy and image-cache


def _show_version(context: typer.Context, asked: bool) -> None:
    if asked:
        from importlib.metadata import version  # here: every start would pay for it

        print(context.info_name, version("imgproxy"))
        raise typer.Exit


#: An option of both programs.
Version = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]


def parse_size(text: str) -> int:
    """Bytes in `64MiB`, `1.5G`, `4096`; a factor of 1000 without the `i`, of 1024 with it."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"size {text!r}: write a number and kB, MB, GB, KiB, MiB, GiB")
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _POWER[prefix])


def show_size(size: float) -> str:
    """`1.5 GiB`, `12 KiB`, `7 B`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def run_program(name: str, verbose: bool, main: Callable[[], int]) -> int:
    """Run `main` and turn what it raises into one line and an exit code."""
    try:
        return main()
    except KeyboardInterrupt:
        return 130
    except (UsageError, SessionRefused, RemoteProtocolError, OSError, trio.BrokenResourceError) as error:
        if verbose:
            structlog.get_logger().exception("failed")
        print(f"{name}: {explain(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def explain(error: BaseException) -> str:
    """One line for a person."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
