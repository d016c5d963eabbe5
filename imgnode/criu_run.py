"""A CRIU that somebody else started, as the kernel shows it: who it is, where it works, whom it holds, how it ended.

CRIU says none of this on its sockets, and only its parent gets its exit code. But it keeps its images directory open,
its current directory is its work directory, it is the tracer of all that it has frozen, and it writes `stats-dump` into
its work directory as the last thing of a dump or pre-dump that went well, and then only. The command line is good for
early, clear words: what it cannot tell (options of a configuration file, of RPC) the rest does not depend on.

Seen with CRIU 4.1.1 and 4.2.1. Blocking, but for `ended`.
"""

import math
import stat
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from imgnode import proc
from imgnode.criu import cause
from imgnode.criu_options import values_of
from imgnode.proc import ProcessId
from imgnode.process import wait_dead

#: What CRIU writes last, in its work directory.
STATS = "stats-dump"

_RUNNING = ("-R", "--leave-running")
_FLAGS = ("--track-mem", "--no-default-config")  # without a value, and likely before those

_Stamp = tuple[int, int, int] | None  # of a file: inode, time of the last change, of its data and of anything, in ns


@dataclass(frozen=True)
class CriuRun:
    """A CRIU at work; everything but `process` is as it was when it was found."""

    process: ProcessId
    words: tuple[str, ...]  #: its command line
    work_dir: Path
    directories: frozenset[tuple[int, int]]  #: device and inode of those that it has open
    stats: _Stamp  #: of the `stats-dump` that was there before

    @property
    def pid(self) -> int:
        """Its pid."""
        return self.process.pid

    @property
    def says_dump(self) -> bool:
        """Whether its command line says that it dumps; one that cannot be understood does not."""
        return "dump" in self.words and "pre-dump" not in self.words

    @property
    def leaves_running(self) -> bool:
        """Whether its command line says, beyond doubt, that it dumps and lets its tasks run on, whatever comes. What
        could be another option's value, or stands behind the last option, does not say so."""
        options = self.words[: self.words.index("--")] if "--" in self.words else self.words
        return self.says_dump and any(
            word in _RUNNING and (not before.startswith("-") or before in _FLAGS) for before, word in pairwise(options)
        )

    def option(self, name: str) -> str | None:
        """What it was given last for an option that has a value."""
        return next(reversed(values_of(self.words, name)), None)

    def works_in(self, directory: Path) -> bool:
        """Whether that is its images directory."""
        status = directory.stat()
        return (status.st_dev, status.st_ino) in self.directories

    def holds(self) -> list[int]:
        """The pids of those that it has frozen."""
        return [task.pid for task in proc.traced_by(self.pid)]

    async def ended(self) -> None:
        """Return when it has ended."""
        await wait_dead([self.process], math.inf)

    def ended_well(self) -> bool:
        """Whether it, which has ended, has done what it was to do."""
        now = _stamp(self.work_dir / STATS)
        return now is not None and now != self.stats

    def cause(self) -> str | None:
        """Why it failed, from its log; None if that does not say, or is not known."""
        name = self.option("log-file")
        log = self.work_dir / name if name else None
        return cause(log.read_text(errors="replace")) if log and log.is_file() else None


def criu_behind(inode: int) -> CriuRun | None:
    """The process that holds this socket; None if it is gone, or not for us to see."""
    holders = proc.socket_holders({inode}) if inode else []
    pid = next((pid for pid in holders if not set(proc.ancestors(pid)[1:]) & set(holders)), None)
    if pid is None:
        return None
    try:
        process, place = proc.identify(pid), Path(f"/proc/{pid}")
        work_dir = (place / "cwd").readlink()
        return CriuRun(process, tuple(proc.command_line(pid)), work_dir, _directories(place), _stamp(work_dir / STATS))
    except (ProcessLookupError, FileNotFoundError, PermissionError):
        return None


def _directories(place: Path) -> frozenset[tuple[int, int]]:
    found = set()
    for link in (place / "fd").iterdir():
        try:
            status = link.stat()
        except FileNotFoundError:  # closed meanwhile
            continue
        if stat.S_ISDIR(status.st_mode):
            found.add((status.st_dev, status.st_ino))
    return frozenset(found)


def _stamp(path: Path) -> _Stamp:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns
