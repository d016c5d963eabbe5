"""The command line of scripts/bench, which has put us into namespaces of our own."""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio
from rich.console import Console

from imgnode.command_line import parse_size
from imgnode.criu import Criu
from scripts.benchmarks.abroad import abroad
from scripts.benchmarks.compress import compress
from scripts.benchmarks.contenders import find_streamer
from scripts.benchmarks.freeze import freeze
from scripts.benchmarks.isa import isa
from scripts.benchmarks.lazy import lazy
from scripts.benchmarks.near_live import near_live
from scripts.benchmarks.nodes import CommandFailed
from scripts.benchmarks.rate import rate
from scripts.benchmarks.remote import NEEDS_ORIGINAL, has_remote, remote
from scripts.benchmarks.report import Report, write_json
from scripts.benchmarks.resources import resources
from scripts.benchmarks.scale import scale
from scripts.benchmarks.stops import stops
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.tls import tls
from scripts.benchmarks.toolchain import toolchain
from scripts.benchmarks.trial import Setting
from tests.programs import compile_program

Benchmark = Callable[[Setting, Workload], Awaitable[Report]]

BENCHMARKS: dict[str, Benchmark] = {
    "rate": rate,
    "resources": resources,
    "tls": tls,
    "compress": compress,
    "scale": scale,
    "freeze": freeze,
    "lazy": lazy,
    "remote": remote,
    "near-live": near_live,
    "toolchain": toolchain,
    "isa": isa,
    "abroad": abroad,
    "stops": stops,
}
SMALL = {"freeze": 1 << 20, "toolchain": 4 << 20}  #: benchmarks whose process, or data, has a size of its own
SIZES = {
    "remote": 512 << 20,
    "isa": 4 << 30,
    "abroad": 16 << 20,
}  #: where another size than the usual one is the default
#: No part of everything: two are emulated, and one of them takes as long as all others together; four build compilers
#: and programs.
BY_NAME = ("near-live", "toolchain", "isa", "abroad", "stops")
SIZE = 1 << 30
QUICK_SIZE = 4 << 20


def parse(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measure, side by side in one run.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"which of {', '.join(BENCHMARKS)}; all but near-live and the last four by default",
    )
    parser.add_argument(
        "--size",
        type=parse_size,
        help="memory of the process (default: 1GiB; remote: 512MiB; isa: 4GiB; abroad: 16MiB)",
    )
    parser.add_argument("--compressible", type=int, default=0, metavar="PERCENT", help="of each page (default: 0)")
    parser.add_argument("--repeats", type=int, help="trials of each contender (default: 5)")
    parser.add_argument("--quick", action="store_true", help="everything tiny: whether it works, not how fast")
    parser.add_argument("--criu", type=Path, help="the CRIU to use (default: the latest that scripts/setup provides)")
    parser.add_argument("--streamer", help="a criu-image-streamer to compare with (default: a foreign one on PATH)")
    parser.add_argument("--original", type=Path, help="for remote: a CRIU 3.14 development build that has --remote")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw numbers there")
    given = parser.parse_args(arguments)
    for name in given.names:
        if name not in BENCHMARKS:
            parser.error(f"{name}: not one of {', '.join(BENCHMARKS)}")
    if given.original is None and "remote" in given.names:
        parser.exit(2, f"bench: remote needs --original PATH, {NEEDS_ORIGINAL}\n")
    if given.original is not None and not has_remote(given.original):
        parser.exit(2, f"bench: --original {given.original}: not {NEEDS_ORIGINAL}\n")
    left_out = [] if given.original else ["remote"]
    given.names = given.names or [name for name in BENCHMARKS if name not in [*left_out, *BY_NAME]]
    return given


def size_of(name: str, given: argparse.Namespace) -> int:
    """Bytes of memory of the process in this benchmark."""
    usual = QUICK_SIZE if given.quick else SIZES.get(name, SIZE)
    return SMALL.get(name, given.size or usual)


async def run(given: argparse.Namespace, setting: Setting, console: Console) -> dict[str, Report]:
    """Run what was named, and show each result as it comes."""
    reports = {}
    for name in given.names:
        workload = Workload(size_of(name, given), compressible=given.compressible)
        reports[name] = await BENCHMARKS[name](setting, workload)
        reports[name].show(console)
    return reports


def main(arguments: list[str]) -> int:
    """Run the benchmarks. Exit code 1 if one could not be run; a target that is missed is only shown."""
    given = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the first process of a namespace ignores it else
    cache = Path(os.environ["IMGPROXY_CACHE"])
    criu = (given.criu or cache / "bin/criu-latest").absolute()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    console, progress = Console(), Console(stderr=True, highlight=False, style="dim")
    with (
        tempfile.TemporaryDirectory(prefix="bench.", dir="/tmp") as directory,
        tempfile.TemporaryDirectory(prefix="bench.", dir=cache) as disk,
    ):
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90%,mode=700", "bench", directory], check=True)
        setting = Setting(
            directory=Path(directory),
            disk=Path(disk),
            criu=criu,
            program=compile_program("memcheck", cache),
            repeats=given.repeats or (1 if given.quick else 5),
            quick=given.quick,
            streamer=given.streamer or find_streamer(),
            original=given.original and given.original.absolute(),
            say=progress.print,
        )
        try:
            reports = trio.run(run, given, setting, console)
        except CommandFailed as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
        finally:
            subprocess.run(["umount", "--lazy", directory], check=True)
    if given.json:
        write_json(given.json, reports, str(trio.run(Criu(str(criu)).version)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
