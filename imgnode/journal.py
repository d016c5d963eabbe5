"""The journal: what a node has decided about a session, on disk before it is acted upon.

One file per session, one JSON object a line, so that a person can read it. Each record is on disk (fsync) before
`write` returns. A last line that was cut by a crash was never acted upon and is ignored. The first record takes room
for those that follow, so that a disk that fills up refuses new sessions and not the end of one. Standard library
only: the action-script hooks use it while a process is frozen.

Records have a "state"; further keys are for who reads them:

    source       opened {name, to, options}   deciding {tree, hook}   killing   committed   aborted {reason}
    destination  receiving {name}   complete   restored {init}   committed   running   aborted {reason}
"""

import errno
import json
import os
from collections.abc import Iterator

TYPE_CHECKING = False  # not from `typing`: importing it takes longer than all that an action script does
if TYPE_CHECKING:
    from typing import Any

_SUFFIX = ".journal"

#: Bytes that the first record takes for the others: a tree of 500 tasks is 20 KiB.
RESERVED = 64 << 10
_KEEP_SIZE = 1  # linux/falloc.h


class Journal:
    """The records of one session."""

    def __init__(self, directory: str, session: str) -> None:
        self.directory = directory
        self.path = f"{directory}/{session}{_SUFFIX}"
        self.session = session

    def write(self, state: str, **facts: object) -> None:
        """Append a record; it is on disk when this returns. OSError with the path if that fails."""
        line = json.dumps({"state": state, **facts}, separators=(",", ":")) + "\n"
        new = not os.path.exists(self.path)
        try:
            self._append(line.encode(), new=new)
        except OSError as error:
            if new:
                self.remove()
            raise OSError(error.errno, f"the journal cannot be written: {error.strerror}", self.path) from error

    def _append(self, line: bytes, *, new: bool) -> None:
        fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if new:
                _reserve(fd)
            _end_cut_line(fd)
            os.write(fd, line)
            os.fsync(fd)
        finally:
            os.close(fd)
        if new:
            _sync_directory(self.directory)

    def records(self) -> "list[dict[str, Any]]":
        """Every record, oldest first; [] if there is no journal."""
        try:
            with open(self.path, encoding="ascii") as file:
                lines = file.readlines()
        except FileNotFoundError:
            return []
        return [record for line in lines if line.endswith("\n") and (record := _record(line)) is not None]

    @property
    def state(self) -> str | None:
        """The state in the last record."""
        records = self.records()
        return str(records[-1]["state"]) if records else None

    def fact(self, key: str) -> "Any":
        """The newest value under `key` in any record, or None."""
        return next((record[key] for record in reversed(self.records()) if key in record), None)

    def remove(self) -> None:
        """Both sides agree: forget it."""
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            return


def journals(directory: str) -> Iterator[Journal]:
    """The journals in a directory, by name."""
    for name in sorted(os.listdir(directory)):
        if name.endswith(_SUFFIX):
            yield Journal(directory, name.removesuffix(_SUFFIX))


def _record(line: str) -> "dict[str, Any] | None":
    try:
        record: dict[str, Any] = json.loads(line)
    except ValueError:  # cut by a crash
        return None
    return record


def _reserve(fd: int) -> None:
    """Take room behind the end of the file. Where the file system cannot do that, go without."""
    import ctypes  # not by the hooks: theirs is never the first record

    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if libc.fallocate(fd, _KEEP_SIZE, 0, RESERVED) != 0 and ctypes.get_errno() != errno.EOPNOTSUPP:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _end_cut_line(fd: int) -> None:
    """If a crash has cut the last line, the next one must not continue it."""
    size = os.fstat(fd).st_size
    if size and os.pread(fd, 1, size - 1) != b"\n":
        os.write(fd, b"\n")


def _sync_directory(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
