"""Asking CRIU about itself: its version, what the kernel lets it do, whether another node's CPU will do.

The checks before a migration use this; dumps and restores, which live as long as a session, are started
elsewhere. CRIU gives its reasons only in its log, so it logs to stderr here, and the last error line becomes
the reason.
"""

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import NamedTuple

import trio

from imgwire.errors import UsageError

DEADLINE = 90.0
"""Seconds for one question. Each takes well under one; a first run also probes the kernel. On an emulated processor
beside other work 30 were too few."""

_ERROR_LINE = re.compile(r"^(?:\(\d+\.\d+\)\s*)?(?:\s*\d+:\s*)?Error \([^)]*\):\s*(.+)$", re.MULTILINE)
_NO_CAUSE = re.compile(r"(Dumping|Restoring) FAILED|rlimit: Can't setup|tun: Unable to create tun")
"""Error lines that only say that there were others, or that CRIU goes on after."""

_LOOKED = re.compile(r"^(?:Warn|Error)\s+\([^)]*\bcr-check\.c:\d+\)", re.MULTILINE)
"""What a check says that found something missing; what keeps it from looking is said elsewhere."""

_VERSION_LINE = re.compile(r"^Version:\s*(\d+)\.(\d+)(?:\.(\d+))?", re.MULTILINE)


class Version(NamedTuple):
    """A release of CRIU; compares as its numbers do. A release such as 4.2 has `sub` 0."""

    major: int
    minor: int
    sub: int = 0

    def __str__(self) -> str:
        return ".".join(map(str, self if self.sub else self[:2]))


OLDEST_STREAM = Version(3, 15)
"""The first release with --stream."""

FIRST_WIDE_COUNTS = Version(4, 2)
"""The first release whose pagemaps count pages in 64 bits, in a field that older ones do not know."""

OLDEST_TESTED = Version(4, 1, 1)
"""The oldest release that this project's tests run with."""


class CriuError(Exception):
    """CRIU could not do what it was asked to; the message holds its own reason."""


class Criu:
    """One CRIU program, named by a path or looked up in PATH."""

    def __init__(self, command: str | Path) -> None:
        self.command = command

    async def version(self) -> Version:
        """What `criu --version` says.

        UsageError if there is no such program, CriuError if it answers something else.
        """
        done = await self._run("--version")
        output = done.stdout.decode("utf-8", "replace")
        if done.returncode != 0 or _VERSION_LINE.search(output) is None:
            raise CriuError(f"{self.command} --version gives no version: {_reason(done)}")
        return parse_version(output)

    async def cpuinfo_dump(self, directory: Path) -> None:
        """Write this CPU's description to `directory`/cpuinfo.img. CriuError if CRIU cannot."""
        done = await self._run("cpuinfo", "dump", "-D", str(directory))
        if done.returncode != 0:
            raise CriuError(f"{self.command} cpuinfo dump to {directory}: {_reason(done)}")

    async def cpuinfo_check(self, directory: Path) -> str | None:
        """None if this CPU can do all that the one described in `directory`/cpuinfo.img can, else CRIU's
        reason.
        """
        done = await self._run("cpuinfo", "check", "-D", str(directory))
        return None if done.returncode == 0 else _reason(done)

    async def check_feature(self, name: str) -> bool:
        """Whether CRIU and the kernel have a feature, such as mem_dirty_track.

        An unknown one is a missing one. CriuError if it could not be looked for.
        """
        done = await self._run("check", "--feature", name)
        if done.returncode != 0 and not _LOOKED.search(_output(done)):
            raise CriuError(f"{self.command} check --feature {name}: {_first_reason(done)}")
        return done.returncode == 0

    async def _run(self, *arguments: str) -> "subprocess.CompletedProcess[bytes]":
        """Run to the end, output captured. CriuError if a signal or the deadline ends it."""
        program = self._program()
        try:
            with trio.fail_after(DEADLINE):
                done = await trio.run_process(
                    [program, *arguments],
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    deliver_cancel=_kill,
                )
        except trio.TooSlowError as error:
            raise CriuError(f"{self.command} {arguments[0]} gave no answer in {DEADLINE:.0f} s") from error
        except OSError as error:
            raise UsageError(f"CRIU {self.command}: cannot be started ({error.strerror}): name a program") from error
        if done.returncode < 0:
            raise CriuError(f"{self.command} {arguments[0]} was ended by {signal.Signals(-done.returncode).name}")
        return done

    def _program(self) -> str:
        found = shutil.which(os.fspath(self.command))
        if found is None:
            raise UsageError(f"CRIU {self.command}: no such program: install CRIU, or name it with --criu")
        return found


async def _kill(process: trio.Process) -> None:
    """A question changes nothing, so there is nothing to end gracefully."""
    process.kill()


def parse_version(output: str) -> Version:
    """The version in what `criu --version` prints: a line "Version: 4.1.1", perhaps more lines.

    ValueError without one.
    """
    found = _VERSION_LINE.search(output)
    if found is None:
        raise ValueError(f"no CRIU version in {output!r}")
    return Version(*(int(number or 0) for number in found.groups()))


def last_error(log: str) -> str | None:
    """The text of the last error line of a CRIU log, without place and time; None if it has none."""
    found = _ERROR_LINE.findall(log)
    return found[-1].strip() if found else None


def cause(log: str) -> str | None:
    """The text of the error line of a CRIU log that says why it failed: the first, what follows are consequences."""
    found = [text.strip() for text in _ERROR_LINE.findall(log)]
    return next((text for text in found if not _NO_CAUSE.match(text)), found[-1] if found else None)


def _reason(done: "subprocess.CompletedProcess[bytes]") -> str:
    return last_error(_output(done)) or _lines(done)[-1]


def _first_reason(done: "subprocess.CompletedProcess[bytes]") -> str:
    return cause(_output(done)) or _lines(done)[0].rstrip(": ")


def _lines(done: "subprocess.CompletedProcess[bytes]") -> list[str]:
    """What it wrote, or that it wrote nothing."""
    return _output(done).strip().splitlines() or [f"exit code {done.returncode} and no message"]


def _output(done: "subprocess.CompletedProcess[bytes]") -> str:
    return (done.stdout + done.stderr).decode("utf-8", "replace")
