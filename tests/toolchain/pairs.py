"""Running what hetcc makes, on both ISAs: x86-64 natively, aarch64 by qemu's emulation of a process."""

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT

#: Everything (all programs, larger classes) instead of what is quick.
ALL = os.environ.get("IMGPROXY_PROGRAMS") == "all"
#: Stops under stress, and what they are drawn from.
STOPS = int(os.environ.get("IMGPROXY_STOPS", "500"))
SEED = int(os.environ.get("IMGPROXY_SEED", "1"))
PROGRAMS = Path(__file__).parent / "programs"
#: Seconds for one program, on a busy machine.
DEADLINE = 600.0


def run(*words: object, stdin: bytes = b"", directory: Path | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run to the end."""
    return subprocess.run(
        [str(word) for word in words], capture_output=True, check=False, timeout=DEADLINE, cwd=directory, input=stdin
    )


def output(*words: object, stdin: bytes = b"", directory: Path | None = None) -> bytes:
    """What it writes; it must end with 0."""
    done = run(*words, stdin=stdin, directory=directory)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{(done.stdout + done.stderr).decode(errors='replace')}"
    return done.stdout


def on_each(program: Path) -> list[list[str]]:
    """How the two of a pair are run."""
    return [[f"{program}_x86-64"], ["qemu-aarch64", f"{program}_aarch64"]]


def output_of_both(program: Path, *arguments: object, stdin: bytes = b"", directory: Path | None = None) -> bytes:
    """What both write, which must be the same."""
    outputs = [output(*words, *arguments, stdin=stdin, directory=directory) for words in on_each(program)]
    assert outputs[0] == outputs[1]
    return outputs[0]


def wrapper(words: Sequence[str], path: Path) -> None:
    """A command at `path` that runs `words`, for tests that come as a Makefile."""
    path.unlink(missing_ok=True)
    path.write_text(f'#!/bin/sh\nexec {" ".join(words)} "$@"\n')
    path.chmod(0o755)


def unpack(package: str, place: Path, *options: str) -> Path:
    """A source package of Debian's, unpacked; `--debian` among the options: with Debian's patches."""
    output(ROOT / "scripts/toolchain", "unpack", *options, package, place)
    return place


def make(directory: Path, *words: object) -> bytes:
    """What make says."""
    return output("make", "-C", directory, *words)


def under_stress(
    program: Path,
    *arguments: object,
    free: float = 0,
    stdin: bytes = b"",
    directory: Path | None = None,
    code: int = 0,
) -> tuple[bytes, int, int]:
    """What this machine's of a pair writes under stress, how often it was stopped, and at how many places.

    `free`: seconds between bursts of stops, at most; `code`: its exit code.
    """
    how = ["--stops", STOPS, "--free", free, "--seed", SEED]
    done = run(sys.executable, "-m", "toolchain.stress", *how, program, *arguments, stdin=stdin, directory=directory)
    assert done.returncode == code, done.stderr.decode(errors="replace")
    said = re.search(rb"(\d+) stops at (\d+) of \d+ points", done.stderr)
    assert said, done.stderr
    return done.stdout, int(said[1]), int(said[2])
