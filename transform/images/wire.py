"""Protobuf at the level of its records: edits that leave every untouched byte where it was.

The protobuf runtime keeps unknown fields but writes them after the known ones and normalises varints, so a
parsed and re-serialised entry is not the entry CRIU wrote. `rewrite` therefore takes what changed between
two parsed messages and puts only that into the original bytes. The encoding is the one described in
protobuf's "Encoding" document; groups, which CRIU never writes, are refused.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
MAX_VARINT = 10
"""Bytes of the longest varint: 64 bits in groups of seven."""


class WireError(ValueError):
    """Bytes that are not a protobuf message; `offset` from the message's start."""

    def __init__(self, offset: int, reason: str) -> None:
        super().__init__(f"byte {offset}: {reason}")
        self.offset = offset
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Record:
    """One field as it stands in a message: `raw` is tag and all, `value` is what follows tag (and length)."""

    number: int
    wire_type: int
    raw: bytes
    value: bytes


def read_varint(data: bytes, offset: int) -> tuple[int, int]:
    """The unsigned varint at `offset` and the offset behind it."""
    value = 0
    for index in range(MAX_VARINT):
        if offset + index >= len(data):
            raise WireError(offset, "the message ends within a varint")
        byte = data[offset + index]
        value |= (byte & 0x7F) << (7 * index)
        if byte < 0x80:
            return value, offset + index + 1
    raise WireError(offset, "a varint of more than ten bytes")


def write_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def records(data: bytes) -> Iterator[Record]:
    """The fields of one message in the order of its bytes."""
    offset = 0
    while offset < len(data):
        tag, body = read_varint(data, offset)
        wire_type, number = tag & 7, tag >> 3
        if number == 0:
            raise WireError(offset, "field number 0")
        value, end = _value_extent(data, body, wire_type)
        if end > len(data):
            raise WireError(offset, f"field {number} ends {end - len(data)} bytes behind the message")
        yield Record(number, wire_type, data[offset:end], data[value:end])
        offset = end


def _value_extent(data: bytes, body: int, wire_type: int) -> tuple[int, int]:
    if wire_type == VARINT:
        return body, read_varint(data, body)[1]
    if wire_type == FIXED64:
        return body, body + 8
    if wire_type == FIXED32:
        return body, body + 4
    if wire_type == LENGTH:
        length, start = read_varint(data, body)
        return start, start + length
    raise WireError(body, f"wire type {wire_type}, which CRIU does not use")


def rewrite(original: bytes, before: Message, after: Message) -> bytes:
    """`original` (which parses to `before`) with the fields changed that differ in `after`, and no others.

    A changed field stays at its place, elements of a repeated field included; a new field goes before the
    first one with a greater number. Raises `WireError` when `original` is not a message.
    """
    old = list(records(original))
    places = _places(old)
    new: dict[int, list[bytes]] = {}
    for field in _changed(before, after):
        old_values = [old[index] for index in places[field.number]]
        new[field.number] = _replacement(field, old_values, before, after)
    return b"".join(_merged(old, places, new))


def _places(old: list[Record]) -> defaultdict[int, list[int]]:
    places: defaultdict[int, list[int]] = defaultdict(list)
    for index, record in enumerate(old):
        places[record.number].append(index)
    return places


def _merged(old: list[Record], places: dict[int, list[int]], new: dict[int, list[bytes]]) -> Iterator[bytes]:
    inserted = sorted(number for number in new if not places.get(number))
    for index, record in enumerate(old):
        while inserted and inserted[0] < record.number:
            yield from new[inserted.pop(0)]
        if record.number not in new:
            yield record.raw
            continue
        rank = places[record.number].index(index)
        last = index == places[record.number][-1]
        yield from new[record.number][rank : None if last else rank + 1]
    for number in inserted:
        yield from new[number]


def _changed(before: Message, after: Message) -> list[FieldDescriptor]:
    old = {field.number: (field, value) for field, value in before.ListFields()}
    new = {field.number: (field, value) for field, value in after.ListFields()}
    return [
        field
        for number, (field, value) in {**old, **new}.items()
        if number not in old or number not in new or old[number][1] != value
    ]


def _replacement(field: FieldDescriptor, old: Sequence[Record], before: Message, after: Message) -> list[bytes]:
    """The records, in order, that stand for `field` in the rewritten message."""
    fresh = [record.raw for record in records(_alone(field, after))]
    if field.message_type is None:
        return fresh
    old_values, new_values = _values(field, before), _values(field, after)
    if len(old) != len(old_values):
        return fresh
    for index, (record, was, becomes) in enumerate(zip(old, old_values, new_values, strict=False)):
        fresh[index] = record.raw if was == becomes else _nested(record, was, becomes)
    return fresh


def _nested(record: Record, before: Message, after: Message) -> bytes:
    value = rewrite(record.value, before, after)
    return write_varint(record.number << 3 | LENGTH) + write_varint(len(value)) + value


def _values(field: FieldDescriptor, message: Message) -> list[Message]:
    if field.is_repeated:
        return list(getattr(message, field.name))
    return [getattr(message, field.name)] if message.HasField(field.name) else []


def _alone(field: FieldDescriptor, message: Message) -> bytes:
    """The encoding of one field of a message, without the others."""
    alone = type(message)()
    if field.is_repeated:
        getattr(alone, field.name).MergeFrom(getattr(message, field.name))
    elif message.HasField(field.name) and field.message_type is not None:
        getattr(alone, field.name).CopyFrom(getattr(message, field.name))
    elif message.HasField(field.name):
        setattr(alone, field.name, getattr(message, field.name))
    return alone.SerializePartialToString()
