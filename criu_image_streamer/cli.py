"""The command line of `criu-image-streamer`: its options, and how an error reaches the user.

It takes what callers of the command of that name pass today. argparse, not what the other programs use: that library
takes longer to load than a small image set takes to serve.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.names import check_image_name

PROGRAM = "criu-image-streamer"
OPERATIONS = ("capture", "serve", "extract")


@dataclass(frozen=True)
class Options:
    """What was asked for. Descriptors are those that the caller opened for us."""

    operation: str
    images_dir: Path
    shard_fds: tuple[int, ...]
    external: dict[str, int]  #: name of an external file -> its descriptor
    progress_fd: int
    tcp_listen_remap: tuple[str, ...]


def parse(arguments: Sequence[str]) -> Options:
    """Options before or after the operation; UsageError for what cannot be obeyed."""
    given = _parser().parse_args(arguments)
    if given.tcp_listen_remap and given.operation != "serve":
        raise UsageError(f"--tcp-listen-remap: only serve can do that, not {given.operation}")
    default_shard = 1 if given.operation == "capture" else 0
    options = Options(
        given.operation,
        given.images_dir,
        tuple(_number("--shard-fds", text) for text in _split(given.shard_fds)) or (default_shard,),
        dict(_external(text) for text in _split(given.ext_file_fds)),
        _number("--progress-fd", given.progress_fd),
        tuple(given.tcp_listen_remap),
    )
    used = [*options.shard_fds, *options.external.values()]
    twice = next((fd for fd in used if used.count(fd) > 1), None)
    if twice is not None:
        raise UsageError(f"descriptor {twice} is given for two purposes; give each once")
    return options


def run(arguments: Sequence[str]) -> int:
    """Do what the arguments say; the exit code. An error is one line on stderr."""
    try:
        options = parse(arguments)
    except UsageError as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    from criu_image_streamer.operations import perform

    return perform(options)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {PROGRAM} --help)")


class _Version(argparse.Action):
    """Looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_given: object) -> NoReturn:
        from importlib.metadata import version

        print(f"{PROGRAM} {version('imgproxy')}")
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROGRAM,
        allow_abbrev=False,
        description="Streams the images of criu dump and criu restore (--stream) to and from pipes.",
    )
    parser.add_argument("operation", choices=OPERATIONS, help="CRIU to shards, shards to CRIU, shards to a directory")
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    parser.add_argument(
        "-D", "--images-dir", type=Path, required=True, metavar="DIR", help="where CRIU's socket or the images go"
    )
    parser.add_argument(
        "-s", "--shard-fds", action="append", default=[], metavar="FD,..", help="shards; default: stdout or stdin"
    )
    parser.add_argument(
        "-e",
        "--ext-file-fds",
        action="append",
        default=[],
        metavar="NAME:FD,..",
        help="files to carry as well",
    )
    parser.add_argument("-p", "--progress-fd", default="2", metavar="FD", help="where progress is told; default: 2")
    parser.add_argument(
        "--tcp-listen-remap", action="append", default=[], metavar="OLD:NEW,..", help="serve: move listening TCP ports"
    )
    return parser


def _split(values: Sequence[str]) -> Iterator[str]:
    return (part for value in values for part in value.split(","))


def _number(option: str, text: str) -> int:
    if not text.isdecimal():
        raise UsageError(f"{option} {text}: write the number of an open descriptor")
    return int(text)


def _external(text: str) -> tuple[str, int]:
    name, colon, fd = text.partition(":")
    if not colon:
        raise UsageError(f"--ext-file-fds {text}: write NAME:FD")
    try:
        return check_image_name(name), _number("--ext-file-fds", fd)
    except RemoteProtocolError as error:
        raise UsageError(f"--ext-file-fds {text}: {error}") from None
