"""Near-live migration by CRIU's own commands: `imgproxy rounds`, and what `imgproxy --rounds` has to check and to say.

A shell puts what `imgproxy rounds` prints into the command line of CRIU, whatever its exit code. A CRIU that got
nothing would dump to the directory it was called in, and kill the process; so in place of options that cannot be had
it gets one that it does not know, with which it ends at once.
"""

import re
import sys
from pathlib import Path
from typing import Annotated

import structlog
import typer

from imgnode.addresses import Address, FileAddress
from imgnode.command_line import Wire, run_program
from imgnode.control_client import ControlClient, Request
from imgnode.criu import CriuError
from imgproxy.hook import SOCKET
from imgproxy.near_live import tracks_changes
from imgwire.errors import UsageError

#: An option that no CRIU has.
UNKNOWN_TO_CRIU = "--imgproxy-has-no-options-for-this"

_PLAIN = re.compile(r"[A-Za-z0-9_/.,:+@%=-]+")

_log = structlog.get_logger()


def rounds(
    directory: Annotated[Path, typer.Option("-D", "--images-dir", help="As given to imgproxy --rounds.")],
    last: Annotated[
        bool, typer.Option("--last", help="For criu dump, the last round; else for criu pre-dump.")
    ] = False,
) -> None:
    """Print the options for the next CRIU of `imgproxy --rounds`, once the one before has ended."""

    def main() -> int:
        words = [UNKNOWN_TO_CRIU]
        try:
            answer = _ask(directory.absolute(), {"op": "rounds", "last": last})
            print(f"imgproxy: {answer['note']}", file=sys.stderr)
            words = answer["options"]
        finally:
            print(*words)
        return 0

    raise typer.Exit(run_program("imgproxy", False, main))


def _ask(directory: Path, request: Request) -> Request:
    try:
        client = ControlClient(str(directory / SOCKET))
    except (FileNotFoundError, ConnectionRefusedError):
        raise UsageError(f"no imgproxy is at work in {directory}; start imgproxy --rounds -D {directory}") from None
    answer = client.only_answer(request)
    if answer is None:
        raise UsageError(f"the imgproxy in {directory} has ended: see what it says of its session")
    if not answer.get("ok"):
        raise UsageError(f"the imgproxy in {directory} was not started with --rounds")
    return answer


def check_by_hand(directory: Path, address: Address, wire: Wire, *, remote: bool, hook: bool | None) -> None:
    """Refuse with UsageError what --rounds cannot be combined with."""
    if remote:
        raise UsageError("--rounds: criu --remote has pre-dumps of its own; write one of the two")
    if wire is Wire.CRIU or isinstance(address, FileAddress):
        raise UsageError("--rounds: only an imgcache puts rounds together; write --to HOST:PORT or unix:PATH of one")
    if hook is False:
        raise UsageError("--no-hook: a dump after pre-dumps ends in its action script; leave it out")
    if not _PLAIN.fullmatch(str(directory)):
        raise UsageError(f"{directory}: a shell would part or change this path in a command; use a plain one")


async def warn_without_tracking() -> None:
    """Say it if the criu that is found here cannot pre-dump; another one may be meant."""
    try:
        tracks = await tracks_changes("criu")
    except (CriuError, UsageError) as error:
        _log.debug("criu could not be asked", error=str(error))
    else:
        if not tracks:
            _log.warning("this kernel does not track changes of memory (soft-dirty): criu pre-dump will refuse")


def say_ready_by_hand(directory: Path) -> None:
    """Which commands come now."""
    options = f"$(imgproxy rounds -D {directory}"
    _log.info(
        "ready", pre_dump_with=f"criu pre-dump -t PID {options})", dump_with=f"criu dump -t PID {options} --last) ..."
    )
