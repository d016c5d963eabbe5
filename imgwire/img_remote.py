"""The local sockets of the original `criu --remote` (2015 to 2020), both variants, sans I/O.

One connection for each image. The client names it and says whether it reads or writes; what comes next shows the
variant. `pipe` (since May 2020) passes one end of a pipe with a byte, `nopipe` uses the socket itself. Two names mean
something else: `parent` is the list of snapshot ids, pushed and read on the socket whatever the variant, and the empty
name is the end of a dump or of a restore. A descriptor travels with one certain byte, so the I/O around must not read
farther than `wanted` says.

Source: recordings of the original client, proxy and cache (CRIU 3.14).
"""

from dataclasses import dataclass
from enum import Enum, auto

from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.img_remote_messages import (
    LENGTH,
    PARENT,
    LocalEntry,
    OpenMode,
    decode_snapshot,
    encode_snapshots,
    message_length,
)

_EXISTS = b"\x02\x00\x00\x00\x08\x00"
_MISSING = b"\x02\x00\x00\x00\x08\x02"  # ENOENT; the client takes any other number for a failure


class Finish(Enum):
    """What has ended, well or not: the client says it in both cases."""

    DUMP = auto()
    RESTORE = auto()


@dataclass(frozen=True)
class SnapshotPushed:
    """A pre-dump or a dump begins; its images will carry this id. No answer: close."""

    snapshot: str


@dataclass(frozen=True)
class SnapshotsWanted:
    """The client asks for the list of ids: send `answer_snapshots`, close."""


@dataclass(frozen=True)
class ImageWritten:
    """The client is about to write an image. `PipePassed` or `BodyBegun` tells where."""

    name: str
    snapshot: str


@dataclass(frozen=True)
class ImageWanted:
    """The client wants to read an image: `answer`, then feed the pipe that comes, or the socket."""

    name: str
    snapshot: str


@dataclass(frozen=True)
class PipePassed:
    """The descriptor for the image has come: the variant is `pipe`."""


@dataclass(frozen=True)
class BodyBegun:
    """`data` is the begin of the image, the rest follows on the socket: the variant is `nopipe`."""

    data: bytes


@dataclass(frozen=True)
class Finished:
    """The end of a dump or of a restore: close."""

    what: Finish


LocalEvent = SnapshotPushed | SnapshotsWanted | ImageWritten | ImageWanted | PipePassed | BodyBegun | Finished


class _State(Enum):
    LENGTH = auto()
    ENTRY = auto()
    ID_LENGTH = auto()
    ID = auto()
    ANSWER = auto()
    WRITING = auto()  # the next byte shows the variant
    READING = auto()  # the same, if the client uses pipes
    DONE = auto()  # nothing more is for us to read


class LocalConnection:
    """One connection of a client to a local socket."""

    def __init__(self) -> None:
        self._state = _State.LENGTH
        self._buffer = bytearray()
        self._need = LENGTH.size

    @property
    def wanted(self) -> int:
        """How many bytes may be read from the socket now; 0 while our answer is due and at the end."""
        if self._state in (_State.ANSWER, _State.DONE):
            return 0
        return self._need - len(self._buffer)

    @property
    def may_carry_fd(self) -> bool:
        """Whether a descriptor may come with the next byte."""
        return self._state in (_State.WRITING, _State.READING)

    def receive_data(self, data: bytes, fds: int = 0) -> list[LocalEvent]:
        """Take up to `wanted` bytes that came with `fds` descriptors; return what they mean."""
        if not 0 < len(data) <= self.wanted:
            raise LocalProtocolError(f"{len(data)} bytes read where {self.wanted} were wanted")
        if fds and not (self.may_carry_fd and fds == 1):
            raise RemoteProtocolError(f"{fds} descriptors came where {int(self.may_carry_fd)} was due")
        if self.may_carry_fd:
            return [self._variant(data, fds)]
        self._buffer += data
        if len(self._buffer) < self._need:
            return []
        taken = bytes(self._buffer)
        self._buffer.clear()
        return self._step(taken)

    def receive_eof(self) -> list[LocalEvent]:
        """The client closed. An empty image of the `nopipe` variant ends like that; else it is an error."""
        state, self._state = self._state, _State.DONE
        if state is _State.WRITING:
            return [BodyBegun(b"")]
        if state is not _State.DONE and not (state is _State.READING or self._is_idle(state)):
            raise RemoteProtocolError("the client closed the connection in the middle of a request")
        return []

    def answer(self, *, exists: bool) -> bytes:
        """The bytes that tell whether the image exists. Where it does, a descriptor may come next."""
        self._check_answer()
        self._await(_State.READING if exists else _State.DONE, 1)
        return _EXISTS if exists else _MISSING

    def answer_snapshots(self, ids: list[str]) -> bytes:
        """The bytes that tell all snapshot ids, oldest first; close afterwards."""
        self._check_answer()
        self._state = _State.DONE
        return _EXISTS + encode_snapshots(ids)

    def _is_idle(self, state: _State) -> bool:
        return state is _State.LENGTH and not self._buffer

    def _check_answer(self) -> None:
        if self._state is not _State.ANSWER:
            raise LocalProtocolError("no request is waiting for an answer")

    def _variant(self, data: bytes, fds: int) -> LocalEvent:
        reading = self._state is _State.READING
        self._state = _State.DONE
        if fds:
            if data != b"\0":
                raise RemoteProtocolError(f"a descriptor came with {data!r} instead of a byte of zero")
            return PipePassed()
        if reading:
            raise RemoteProtocolError("the client sends bytes of an image that it wants to read")
        return BodyBegun(data)

    def _step(self, taken: bytes) -> list[LocalEvent]:
        match self._state:
            case _State.LENGTH:
                self._await(_State.ENTRY, message_length(taken))
            case _State.ID_LENGTH:
                self._await(_State.ID, message_length(taken))
            case _State.ID:
                self._state = _State.DONE
                return [SnapshotPushed(decode_snapshot(taken))]
            case _:
                return self._entry(LocalEntry.decode(taken))
        return []

    def _entry(self, entry: LocalEntry) -> list[LocalEvent]:
        if not entry.name:
            self._state = _State.DONE
            return [Finished(Finish.DUMP if entry.mode is OpenMode.WRITE else Finish.RESTORE)]
        if entry.name == PARENT and entry.mode is OpenMode.APPEND:
            self._await(_State.ID_LENGTH, LENGTH.size)
            return []
        if entry.mode is OpenMode.WRITE and entry.name != PARENT:
            self._await(_State.WRITING, 1)
            return [ImageWritten(entry.name, entry.snapshot)]
        if entry.mode is not OpenMode.READ:
            raise RemoteProtocolError(f"{entry.name}: opened with mode {entry.mode.name}")
        self._state = _State.ANSWER
        return [SnapshotsWanted() if entry.name == PARENT else ImageWanted(entry.name, entry.snapshot)]

    def _await(self, state: _State, need: int) -> None:
        self._state, self._need = state, need
