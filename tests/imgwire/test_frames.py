"""The frame header: 32 bytes that either hold or are refused."""

import struct
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.frames import (
    FLAG_ZSTD,
    HEADER_SIZE,
    MAX_COMPRESSED,
    MAX_CONTROL,
    MAX_DATA,
    MAX_HELLO,
    FrameType,
    Header,
)

pytestmark = pytest.mark.t0

lengths = st.integers(1, MAX_DATA)
sequence_numbers = st.integers(1, 2**64 - 1)
headers = st.one_of(
    st.builds(Header, st.just(FrameType.HELLO), st.integers(0, MAX_HELLO)),
    st.builds(Header, st.just(FrameType.CONTROL), st.integers(0, MAX_CONTROL), sequence_numbers),
    st.builds(Header, st.just(FrameType.ACK), st.just(0), st.integers(0, 2**64 - 1)),
    st.just(Header(FrameType.BYE)),
    st.builds(
        lambda size, seq, image, offset: Header(FrameType.DATA, size, seq, 0, image, offset, size),
        lengths,
        sequence_numbers,
        st.integers(0, 2**32 - 1),
        st.integers(0, 2**62),
    ),
    st.builds(
        lambda size, raw, seq: Header(FrameType.DATA, size, seq, FLAG_ZSTD, 1, 0, raw),
        st.integers(0, MAX_COMPRESSED),
        lengths,
        sequence_numbers,
    ),
)


@given(headers)
def test_a_header_survives_the_wire(header: Header) -> None:
    raw = header.encode()
    assert len(raw) == HEADER_SIZE
    assert Header.decode(raw) == header


@given(st.binary(min_size=HEADER_SIZE, max_size=HEADER_SIZE))
def test_garbage_is_refused(raw: bytes) -> None:
    try:
        header = Header.decode(raw)
    except RemoteProtocolError:
        return
    assert header.encode() == raw


@given(st.integers(0, 255), st.integers(0, 255), st.lists(st.integers(0, 2**32 - 1), min_size=3, max_size=3))
def test_what_only_looks_like_a_header_is_refused_or_holds(kind: int, flags: int, fields: list[int]) -> None:
    raw = struct.pack("<BB2sIIIQQ", kind, flags, b"IP", *fields, 1, 0)
    try:
        header = Header.decode(raw)
    except RemoteProtocolError:
        return
    assert header.length <= MAX_CONTROL
    assert header.encode() == raw


def test_the_layout_is_that_of_the_documentation() -> None:
    header = Header(FrameType.DATA, 5, seq=7, flags=FLAG_ZSTD, image=3, offset=4096, raw_length=9)
    assert header.encode() == bytes.fromhex("03 01 4950 03000000 05000000 09000000 0700000000000000 0010000000000000")
    assert header.compressed


PLAIN = Header(FrameType.DATA, 5, seq=1, raw_length=5)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"length": 2**32 - 1}, "the limit is"),
        ({"length": MAX_COMPRESSED + 1, "flags": FLAG_ZSTD}, "the limit is"),
        ({"length": MAX_DATA + 1, "raw_length": MAX_DATA + 1}, "the limit is"),
        ({"length": 0, "raw_length": 0}, "for 0 bytes of image"),
        ({"raw_length": 6}, "says it has 6"),
        ({"raw_length": 2**32 - 1}, "the limit is"),
        ({"flags": 2}, "unknown flags"),
        ({"seq": 0}, "without a number"),
        ({"offset": 2**63}, "at offset"),
        ({"type": FrameType.CONTROL}, "fields of a DATA frame"),
        ({"type": FrameType.HELLO}, "fields of a DATA frame"),
        ({"type": FrameType.ACK, "raw_length": 0}, "the limit is 0"),
    ],
)
def test_one_that_is_not_allowed_cannot_be_held(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(RemoteProtocolError, match=reason):
        replace(PLAIN, **change)


def test_a_length_of_four_gibibytes_is_refused_on_every_frame() -> None:
    for kind in FrameType:
        raw = struct.pack("<BB2sIIIQQ", kind, 0, b"IP", 0, 2**32 - 1, 2**32 - 1, 1, 0)
        with pytest.raises(RemoteProtocolError, match="the limit is"):
            Header.decode(raw)


def test_a_lost_frame_boundary_is_named() -> None:
    with pytest.raises(RemoteProtocolError, match="no frame header"):
        Header.decode(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n.....")


def test_reading_too_little_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        Header.decode(PLAIN.encode()[:-1])
