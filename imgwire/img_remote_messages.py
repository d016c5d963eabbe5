"""The messages of the original `criu --remote`: protobuf with its length in front, every field there, empty ones too.

Written by hand, as the peers are frozen in what they send. Source: recordings of the original client, proxy and cache
(CRIU 3.14).
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from imgwire.errors import RemoteProtocolError
from imgwire.names import check_image_name, check_snapshot

#: The list of snapshot ids, as an image.
PARENT = "parent"
#: Longest message taken: a snapshot id is a path (4096 bytes), a name has 255.
MAX_MESSAGE = 8192
#: Longest list of ids taken: 1000 of the longest.
MAX_LIST = 4 << 20

LENGTH = struct.Struct("<I")


class OpenMode(IntEnum):
    """What is to be done with an image: the flags of open(2)."""

    READ = 0
    WRITE = 1
    APPEND = 1024


@dataclass(frozen=True)
class LocalEntry:
    """What a client asks for."""

    name: str
    snapshot: str
    mode: OpenMode

    def __post_init__(self) -> None:
        if self.name:
            check_image_name(self.name)
        check_snapshot(self.snapshot)

    @classmethod
    def decode(cls, raw: bytes) -> "LocalEntry":
        """RemoteProtocolError unless it is a local_image_entry."""
        fields = _fields(raw, {1: str, 2: str, 3: int})
        return cls(str(fields[1]), str(fields[2]), _mode(fields[3]))

    def encode(self) -> bytes:
        """The message with its length in front."""
        return _framed(_text(1, self.name) + _text(2, self.snapshot) + _number(3, self.mode))


@dataclass(frozen=True)
class RemoteEntry:
    """A header of the TCP stream; `size` in bytes."""

    name: str
    snapshot: str
    mode: OpenMode
    size: int

    def __post_init__(self) -> None:
        check_image_name(self.name)
        check_snapshot(self.snapshot)
        if self.mode is OpenMode.READ or (self.mode is OpenMode.APPEND) is not (self.name == PARENT):
            raise RemoteProtocolError(f"{self.name}: sent with open mode {self.mode.name}")
        if self.name == PARENT and self.size > MAX_LIST:
            raise RemoteProtocolError(f"a list of snapshot ids of {self.size} bytes: the limit is {MAX_LIST}")

    @classmethod
    def decode(cls, raw: bytes) -> "RemoteEntry":
        """RemoteProtocolError unless it is a remote_image_entry."""
        fields = _fields(raw, {1: str, 2: str, 3: int, 4: int})
        return cls(str(fields[1]), str(fields[2]), _mode(fields[3]), int(fields[4]))

    def encode(self) -> bytes:
        """The message with its length in front."""
        return _framed(_text(1, self.name) + _text(2, self.snapshot) + _number(3, self.mode) + _number(4, self.size))


def encode_snapshots(ids: list[str]) -> bytes:
    """A list of snapshot ids, oldest first: the answer to who reads it, and the body of `parent`."""
    return b"".join(_framed(_text(1, one)) for one in ids)


def decode_snapshot(raw: bytes) -> str:
    """The id in a snapshot_id_entry: a path, as it was given with -D."""
    return check_snapshot(str(_fields(raw, {1: str})[1]))


def _mode(value: str | int) -> OpenMode:
    try:
        return OpenMode(int(value))
    except ValueError as error:
        raise RemoteProtocolError(f"open mode {value}") from error


def message_length(raw: bytes) -> int:
    """The length of the message that follows; RemoteProtocolError if it is none that can be."""
    if len(raw) < LENGTH.size:
        raise RemoteProtocolError("a message without its length")
    size: int = LENGTH.unpack(raw)[0]
    if not 1 <= size <= MAX_MESSAGE:
        raise RemoteProtocolError(f"a message of {size} bytes: the limit is {MAX_MESSAGE}")
    return size


def _fields(raw: bytes, wanted: dict[int, type[str] | type[int]]) -> dict[int, str | int]:
    """A protobuf message whose fields are all required; RemoteProtocolError if one is missing or of another type."""
    found: dict[int, str | int] = {}
    at = 0
    while at < len(raw):
        tag, at = _varint_at(raw, at)
        number, kind = tag >> 3, tag & 7
        value, at = _varint_at(raw, at)
        if kind == 2:
            text, at = raw[at : at + value], at + value
            if at > len(raw):
                raise RemoteProtocolError("a message that ends in the middle of a field")
            found[number] = _decoded(text)
        elif kind == 0:
            found[number] = value
        else:
            raise RemoteProtocolError(f"field {number} of wire type {kind}")
    for number, kind_of in wanted.items():
        if type(found.get(number)) is not kind_of:
            raise RemoteProtocolError(f"field {number} is missing or of another type: {raw[:32].hex()}")
    return found


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise RemoteProtocolError(f"a name that is not UTF-8: {text[:32]!r}") from error


def _varint_at(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(raw) and shift < 64:
        byte = raw[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise RemoteProtocolError("a number that does not end")


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(number: int, value: str) -> bytes:
    raw = value.encode()
    return bytes([number << 3 | 2]) + _varint(len(raw)) + raw


def _number(number: int, value: int) -> bytes:
    return bytes([number << 3]) + _varint(value)


def _framed(body: bytes) -> bytes:
    return LENGTH.pack(len(body)) + body
