"""An image as JSON, for people: what `imgtransform show` prints.

Enumerations by name, addresses in hexadecimal, network addresses as text, fields that we have no name for as
number and hexadecimal bytes, raw payloads as size and digest.
"""

import hashlib
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from transform.errors import ImageError
from transform.images.codec import Entry, decode
from transform.images.kinds import is_raw
from transform.images.wire import VARINT, Record, WireError, read_varint, records

Json = dict[str, "Json"] | list["Json"] | str | int | bool | None

SHOW_LIMIT = 256 * 2**20
"""Bytes of an image that is printed; raw ones of any size are only measured."""

_HEX_FIELDS = {"start", "end", "vaddr", "madv", "blk_sigset", "clear_tid_addr", "tls"}
_HEX_MESSAGES = {"RegistersX86", "RegistersAarch64"}
_ADDRESSES = {"src_addr", "dst_addr"}


def show_file(path: Path) -> Json:
    """The image in that file. `ImageError` when it is none, `OSError` when it cannot be read."""
    size = path.stat().st_size
    if is_raw(path.name) or size == 0:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"image": path.name, "raw": {"size": size, "sha256": digest}}
    if size > SHOW_LIMIT:
        raise ImageError(path.name, SHOW_LIMIT, f"an image of {size} bytes is too big to print")
    return show(path.name, path.read_bytes())


def show(name: str, data: bytes) -> Json:
    """An image with entries; `ImageError` for bytes that are not of a kind that we know."""
    image = decode(name, data)
    kind = image.known_kind()
    try:
        entries: list[Json] = [_entry(entry) for entry in image.entries]
    except WireError as error:
        raise ImageError(name, 0, f"an entry in a form that CRIU never writes: {error}") from error
    return {"image": name, "kind": kind.name, "entries": entries}


def _entry(entry: Entry) -> Json:
    shown = _message(entry.message, entry.raw)
    if entry.payload:
        digest = hashlib.sha256(entry.payload).hexdigest()
        shown["payload"] = {"size": len(entry.payload), "sha256": digest}
    return shown


def _message(message: Message, raw: bytes) -> dict[str, Json]:
    named = {field.number for field, _ in message.ListFields()}
    fields = list(records(raw))
    shown: dict[str, Json] = {}
    for field, value in message.ListFields():
        own = [record.value for record in fields if record.number == field.number]
        shown[field.name] = _values(field, list(value), own) if field.is_repeated else _value(field, value, own[-1])
    for record in fields:
        if record.number not in named:
            _add_unknown(shown, record)
    return shown


def _values(field: FieldDescriptor, values: Sequence[Message | bytes | int | bool], raw: Sequence[bytes]) -> Json:
    if field.name in _ADDRESSES:
        packed = b"".join(int(word).to_bytes(4, "little") for word in values if isinstance(word, int))
        return str(ipaddress.ip_address(packed)) if len(packed) in (4, 16) else packed.hex()
    padded = [*raw, *[b""] * (len(values) - len(raw))]
    return [_value(field, value, own) for value, own in zip(values, padded, strict=False)]


def _value(field: FieldDescriptor, value: Message | bytes | int | bool, raw: bytes) -> Json:
    if isinstance(value, Message):
        return _message(value, raw)
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    if not isinstance(value, bool) and _is_address(field):
        return hex(value)
    return value


def _is_address(field: FieldDescriptor) -> bool:
    owner = field.containing_type
    if field.name in _HEX_FIELDS or (owner is not None and owner.name in _HEX_MESSAGES):
        return True
    return field.name.startswith("mm_") and not field.is_repeated


def _add_unknown(shown: dict[str, Json], record: Record) -> None:
    text = hex(read_varint(record.value, 0)[0]) if record.wire_type == VARINT else record.value.hex()
    key = str(record.number)
    there = shown.get(key)
    if there is None:
        shown[key] = text
    elif isinstance(there, list):
        there.append(text)
    else:
        shown[key] = [there, text]
