"""CRIU's image streamer protocol (`criu dump|restore --stream`), both directions, sans I/O.

CRIU connects once per run to a UNIX socket in the images directory and asks for one image after the other. Each
request is `u32 length | protobuf {1: filename}`. On a dump it then passes the read end of a fresh pipe with one
byte; on a restore it first waits for our "exists", then passes the write end.

A descriptor travels with one certain byte of the stream, so the I/O around must never read further than that byte:
`wanted` says how many bytes may be read now, and `expects_fd` whether a descriptor comes with them. Source: CRIU's
own behaviour, recorded with 4.1.1 and 4.2.1.
"""

import struct
from dataclasses import dataclass
from enum import Enum, auto

from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.names import check_image_name

#: Longest request taken: a name of 255 bytes with its protobuf tag and length, and room for a field to come.
MAX_REQUEST = 1024

_LENGTH = struct.Struct("<I")
_FILENAME_TAG = 0x0A  # field 1, length-delimited
_EXISTS = b"\x02\x00\x00\x00\x08\x01"
_MISSING = b"\x02\x00\x00\x00\x08\x00"


class Direction(Enum):
    """Which CRIU command is at the other end."""

    CAPTURE = auto()  #: `criu dump`: it passes the read end of each image's pipe
    SERVE = auto()  #: `criu restore`: it passes the write end, if we say the image exists


@dataclass(frozen=True)
class ImageRequested:
    """CRIU names the image that it wants to write (capture) or read (serve)."""

    name: str

    def __post_init__(self) -> None:
        check_image_name(self.name)


@dataclass(frozen=True)
class PipePassed:
    """The descriptor for the image named last has come."""

    name: str


class _State(Enum):
    LENGTH = auto()
    REQUEST = auto()
    ANSWER = auto()  # serve only: our answer is due
    PIPE = auto()
    CLOSED = auto()


class ImgStreamer:
    """One connection of a CRIU run to our capture or serve socket."""

    def __init__(self, direction: Direction) -> None:
        self._direction = direction
        self._state = _State.LENGTH
        self._buffer = bytearray()
        self._need = _LENGTH.size
        self._name = ""

    @property
    def wanted(self) -> int:
        """How many bytes may be read from the socket now; 0 while our answer is due or after the end."""
        if self._state in (_State.ANSWER, _State.CLOSED):
            return 0
        return self._need - len(self._buffer)

    @property
    def expects_fd(self) -> bool:
        """Whether the next byte must carry exactly one descriptor (else: none)."""
        return self._state is _State.PIPE

    def receive_data(self, data: bytes, fds: int = 0) -> list[ImageRequested | PipePassed]:
        """Take up to `wanted` bytes that came with `fds` descriptors; return what they mean."""
        if len(data) > self.wanted:
            raise LocalProtocolError(f"{len(data)} bytes read where {self.wanted} were wanted")
        if fds and not (self.expects_fd and fds == 1):
            raise RemoteProtocolError(f"{fds} descriptors came where {int(self.expects_fd)} was due")
        if data and self.expects_fd and not fds:
            raise RemoteProtocolError(f"no descriptor came for {self._name}")
        self._buffer += data
        if len(self._buffer) < self._need:
            return []
        taken = bytes(self._buffer)
        self._buffer.clear()
        return self._step(taken)

    def receive_eof(self) -> None:
        """The socket was closed: in order between two images, else RemoteProtocolError."""
        inside = self._buffer or self._state is not _State.LENGTH
        self._state = _State.CLOSED
        if inside:
            raise RemoteProtocolError("the connection was closed in the middle of a request")

    def answer(self, *, exists: bool) -> bytes:
        """The bytes that tell CRIU whether the image it asked for exists (serve only)."""
        if self._state is not _State.ANSWER:
            raise LocalProtocolError("no request is waiting for an answer")
        if exists:
            self._await(_State.PIPE, 1)
            return _EXISTS
        self._await(_State.LENGTH, _LENGTH.size)
        return _MISSING

    def _step(self, taken: bytes) -> list[ImageRequested | PipePassed]:
        if self._state is _State.LENGTH:
            self._await(_State.REQUEST, _request_length(taken))
            return []
        if self._state is _State.REQUEST:
            self._name = _filename(taken)
            event = ImageRequested(self._name)
            self._await(_State.PIPE if self._direction is Direction.CAPTURE else _State.ANSWER, 1)
            return [event]
        name = self._name
        self._await(_State.LENGTH, _LENGTH.size)
        return [PipePassed(name)]

    def _await(self, state: _State, need: int) -> None:
        self._state, self._need = state, need


def request(name: str) -> bytes:
    """What CRIU sends to ask for `name`; for peers that act as CRIU (tests, the socket handed on)."""
    raw = name.encode()
    body = bytes([_FILENAME_TAG]) + _varint(len(raw)) + raw
    return _LENGTH.pack(len(body)) + body


def _request_length(raw: bytes) -> int:
    length: int = _LENGTH.unpack(raw)[0]
    if not 2 <= length <= MAX_REQUEST:
        raise RemoteProtocolError(f"a request of {length} bytes: CRIU's have 2 to {MAX_REQUEST}")
    return length


def _filename(body: bytes) -> str:
    """The file name of the request message: its one field, written by hand as CRIU has sent it since 3.15."""
    length, used = _read_varint(body[1:])
    raw = body[1 + used :]
    if body[0] != _FILENAME_TAG or length != len(raw):
        raise RemoteProtocolError(f"not a request for an image: {body[:32].hex()}")
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"image name {raw!r} is not ASCII") from error


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80, value >> 7])


def _read_varint(raw: bytes) -> tuple[int, int]:
    """A varint of one or two bytes (a name has 255 at most): value and bytes used."""
    if raw[0] < 0x80:
        return raw[0], 1
    if len(raw) < 2 or raw[1] >= 0x80:
        raise RemoteProtocolError(f"not the length of an image name: {raw[:4].hex()}")
    return raw[0] & 0x7F | raw[1] << 7, 2
