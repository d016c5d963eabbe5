"""CRIU images to entries and back, byte for byte.

An image is a magic (one word, or a common word and one of its kind), then entries: `u32 length | message`,
little endian, some followed by raw bytes. `decode` gives an `Image` whose entries are parsed messages that may
be changed in place; `encode` emits an entry that nobody changed from its original bytes, and in a changed one
only the changed fields differ. What we do not know (raw images, kinds of a newer CRIU) is an image without
entries and passes through as `body`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.unknown_fields import UnknownFieldSet

from transform.errors import ImageError
from transform.images.kinds import BY_MAGIC, COMMON_MAGIC, SERVICE_MAGIC, Kind, is_raw
from transform.images.proto import memory_pb2
from transform.images.wire import WireError, rewrite

M = TypeVar("M", bound=Message)

KNOWN_PAGE_FLAGS = 0b111
"""Pages are in the parent, lazy, present. Another flag, or another field, means pages of a form not known here."""


@dataclass(slots=True)
class Entry:
    """One message of an image with the bytes it was read from (none when it is new) and its raw payload."""

    message: Message
    raw: bytes = b""
    payload: bytes = b""

    def encode(self) -> bytes:
        """The frame: length, message, payload."""
        before = type(self.message).FromString(self.raw)
        raw = self.raw if before == self.message else rewrite(self.raw, before, self.message)
        return len(raw).to_bytes(4, "little") + raw + self.payload


@dataclass(slots=True)
class Image:
    """A decoded image. `kind` is None for one that is carried as opaque `body`; otherwise `body` is empty."""

    name: str
    kind: Kind | None
    header: bytes = b""
    entries: list[Entry] = field(default_factory=list)
    body: bytes = b""

    def messages(self, message_type: type[M]) -> list[M]:
        """The entries of that type, in order, to read or to change; `ImageError` if this image has none such."""
        kind = self.known_kind()
        if message_type not in (kind.entry, kind.head):
            wanted = message_type.DESCRIPTOR.name
            raise ImageError(self.name, 0, f"is a {kind.name} image, which has no entries of type {wanted}")
        return [entry.message for entry in self.entries if isinstance(entry.message, message_type)]

    def known_kind(self) -> Kind:
        """Its kind; `ImageError` when this is an opaque image."""
        if self.kind is None:
            raise ImageError(self.name, 0, _no_magic(self.body))
        return self.kind

    def encode(self) -> bytes:
        """The image's bytes; `ImageError` for a changed entry that has fields in a form that CRIU never writes."""
        try:
            return self.header + self.body + b"".join(entry.encode() for entry in self.entries)
        except WireError as error:
            raise ImageError(self.name, len(self.header), f"an entry that cannot be changed: {error}") from error


def decode(name: str, data: bytes) -> Image:
    """The image called `name` (such as "core-17.img"). Raises `ImageError` when its entries are malformed."""
    kind, header = identify(name, data)
    if kind is None:
        return Image(name, None, body=data)
    return Image(name, kind, data[:header], list(_entries(name, data, kind, header)))


def scan(name: str, data: bytes, message_type: type[M]) -> Iterator[M]:
    """The entries of that type one at a time: for pagemaps, of which big tasks have millions of entries."""
    kind, header = identify(name, data)
    if kind is None or message_type not in (kind.entry, kind.head):
        Image(name, kind, body=data).messages(message_type)
        return
    for entry in _entries(name, data, kind, header):
        if isinstance(entry.message, message_type):
            yield entry.message


def identify(name: str, data: bytes) -> tuple[Kind | None, int]:
    """The kind of an image, by its magic, and the length of its header in bytes; None when it is not known."""
    if is_raw(name):
        return None, 0
    first, second = int.from_bytes(data[:4], "little"), int.from_bytes(data[4:8], "little")
    if first in (COMMON_MAGIC, SERVICE_MAGIC):
        return BY_MAGIC.get(second), 8
    return BY_MAGIC.get(first), 4


def _entries(name: str, data: bytes, kind: Kind, offset: int) -> Iterator[Entry]:
    message_type = kind.head or kind.entry
    while offset < len(data):
        start = offset + 4
        end = start + int.from_bytes(data[offset:start], "little")
        if end > len(data):
            raise ImageError(name, offset, f"an entry that ends {end - len(data)} bytes behind the image")
        message = _message(name, data[start:end], start, message_type)
        offset = _payload_end(name, kind, message, data, end)
        yield Entry(message, data[start:end], data[end:offset])
        message_type = kind.entry


def _message(name: str, raw: bytes, offset: int, message_type: type[Message]) -> Message:
    try:
        message = message_type.FromString(raw)
    except DecodeError as error:
        raise ImageError(name, offset, f"not a {message_type.DESCRIPTOR.name} entry: {error}") from error
    if not message.IsInitialized():
        raise ImageError(name, offset, f"{message_type.DESCRIPTOR.name} entry without all of its required fields")
    if message_type in (memory_pb2.PagemapHead, memory_pb2.PagemapEntry):
        _refuse_compressed_pages(name, offset, message)
    return message


def _refuse_compressed_pages(name: str, offset: int, message: Message) -> None:
    unknown = UnknownFieldSet(message)
    flags = getattr(message, "flags", 0)
    if len(unknown) or flags & ~KNOWN_PAGE_FLAGS:
        extra = sorted({unknown[index].field_number for index in range(len(unknown))})
        what = f"fields {extra}" if extra else f"flags {flags:#x}"
        reason = f"pagemap with unknown {what}: compressed pages (LZ4) are not supported; dump without compression"
        raise ImageError(name, offset, reason)


def _payload_end(name: str, kind: Kind, message: Message, data: bytes, offset: int) -> int:
    if kind.payload_end is None:
        return offset
    try:
        end = kind.payload_end(message, data, offset)
    except DecodeError as error:
        raise ImageError(name, offset, f"payload of a {kind.name} entry: {error}") from error
    if end > len(data):
        raise ImageError(name, offset, f"payload that ends {end - len(data)} bytes behind the image")
    return end


def _no_magic(data: bytes) -> str:
    if not data:
        return "is empty, where entries were expected"
    return f"not a CRIU image that we know: it begins with {data[:8].hex(' ')}"
