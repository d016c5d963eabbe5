"""Edits at the level of protobuf records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transform.synthetic import UNKNOWN_HIGH, UNKNOWN_LOW, regular
from transform.images.proto import files_pb2, memory_pb2
from transform.images.wire import WireError, read_varint, records, rewrite, write_varint

pytestmark = pytest.mark.t0


@given(st.integers(0, 2**64 - 1), st.binary(max_size=4))
def test_varints_survive(value: int, rest: bytes) -> None:
    encoded = write_varint(value)
    assert read_varint(encoded + rest, 0) == (value, len(encoded))


@pytest.mark.parametrize("data", [b"\x80", b"\xff" * 11, b"\x0a\x05abc", b"\x0d123", b"\x09123", b"\x0b", b"\x00"])
def test_malformed_messages_are_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        list(records(data))


@given(st.binary())
def test_records_are_the_message_or_a_wire_error(data: bytes) -> None:
    try:
        parts = list(records(data))
    except WireError:
        return
    assert b"".join(part.raw for part in parts) == data


def test_a_change_leaves_all_other_bytes_in_place() -> None:
    reg = regular(7, b"/old").reg.SerializeToString()
    id_flags_pos, name_and_rest = reg[:6], reg[6:]
    raw = id_flags_pos + UNKNOWN_LOW + name_and_rest + UNKNOWN_HIGH
    before, after = files_pb2.RegFile.FromString(raw), files_pb2.RegFile.FromString(raw)
    after.name = b"/newer"
    assert rewrite(raw, before, after) == raw.replace(b"\x32\x04/old", b"\x32\x06/newer")
    assert after.SerializeToString() != rewrite(raw, before, after), "protobuf alone would have kept the order"


def test_nested_unknown_fields_stay_in_place() -> None:
    inner = regular(7, b"/old").reg.SerializeToString() + UNKNOWN_HIGH
    raw = b"\x08\x01\x3a\x03abc\x10\x07" + b"\x1a" + write_varint(len(inner)) + inner + UNKNOWN_HIGH
    before, after = files_pb2.File.FromString(raw), files_pb2.File.FromString(raw)
    after.reg.name = b"/new"
    assert rewrite(raw, before, after) == raw.replace(b"/old", b"/new")


def test_new_fields_go_to_their_number_and_cleared_ones_vanish() -> None:
    raw = regular(7, b"/f").reg.SerializeToString() + UNKNOWN_HIGH
    before, after = files_pb2.RegFile.FromString(raw), files_pb2.RegFile.FromString(raw)
    after.mnt_id = 1
    after.ClearField("size")
    assert [record.number for record in records(rewrite(raw, before, after))] == [1, 2, 3, 6, 7, 999]


def test_repeated_messages_change_one_by_one() -> None:
    def vma(start: int) -> bytes:
        body = b"\x08" + write_varint(start) + UNKNOWN_HIGH
        return b"\x72" + write_varint(len(body)) + body

    raw = b"\x08\x01" + vma(1) + UNKNOWN_LOW + vma(2) + vma(3)
    before, after = memory_pb2.Mm.FromString(raw), memory_pb2.Mm.FromString(raw)
    after.vmas[1].start = 5
    assert rewrite(raw, before, after) == b"\x08\x01" + vma(1) + UNKNOWN_LOW + vma(5) + vma(3)
    after.vmas.add(start=9)
    assert rewrite(raw, before, after) == b"\x08\x01" + vma(1) + UNKNOWN_LOW + vma(5) + vma(3) + b"\x72\x02\x08\x09"
    del after.vmas[1:]
    assert rewrite(raw, before, after) == b"\x08\x01" + vma(1) + UNKNOWN_LOW


files = st.builds(
    files_pb2.RegFile,
    id=st.none() | st.integers(0, 2**32 - 1),
    flags=st.none() | st.integers(0, 2**32 - 1),
    name=st.none() | st.binary(max_size=9),
    mnt_id=st.none() | st.integers(-(2**31), 2**31 - 1),
    ext=st.none() | st.booleans(),
)
watches = st.lists(st.integers(0, 300), max_size=4)


@given(files, files, watches, watches, st.tuples(st.binary(max_size=6), st.binary(max_size=6)))
def test_rewriting_gives_the_message_asked_for(
    reg: files_pb2.RegFile, new_reg: files_pb2.RegFile, old: list[int], new: list[int], values: tuple[bytes, bytes]
) -> None:
    def message(reg: files_pb2.RegFile, ids: list[int]) -> files_pb2.File:
        ify = files_pb2.Inotify(id=1, wd=[files_pb2.InotifyWatch(id=i, wd=2) for i in ids])
        return files_pb2.File(id=4, reg=reg, ify=ify)

    def unknown(number: int, value: bytes) -> bytes:
        return write_varint(number << 3 | 2) + write_varint(len(value)) + value

    low, high = values
    raw = unknown(900, low) + message(reg, old).SerializePartialToString() + unknown(901, high)
    before, after = files_pb2.File.FromString(raw), files_pb2.File.FromString(raw)
    after.MergeFrom(files_pb2.File())
    after.reg.CopyFrom(new_reg)
    after.ify.CopyFrom(message(reg, new).ify)
    rewritten = rewrite(raw, before, after)
    assert rewritten.startswith(unknown(900, low))
    assert rewritten.endswith(unknown(901, high))
    assert files_pb2.File.FromString(rewritten) == after
