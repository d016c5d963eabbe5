"""msgpack behind limits: only plain maps come through, and only the declared types reach a field."""

import time
from dataclasses import dataclass, field
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire.errors import RemoteProtocolError
from imgwire.packing import MAX_ITEMS, build, pack, unpack

pytestmark = pytest.mark.t0

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=9) | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
)


@dataclass(frozen=True)
class Sample:
    number: int
    text: str = ""
    words: tuple[str, ...] = ()
    digest: bytes | None = None
    facts: dict[str, Any] = field(default_factory=dict)


@given(st.dictionaries(st.text(max_size=9), plain, max_size=5))
def test_plain_maps_come_through(value: dict[str, Any]) -> None:
    assert unpack(msgpack.packb(value)) == value


@given(st.binary(max_size=200))
def test_garbage_is_refused(raw: bytes) -> None:
    try:
        value = unpack(raw)
    except RemoteProtocolError:
        return
    assert isinstance(value, dict)


@given(plain)
def test_what_is_no_map_with_names_is_refused(value: Any) -> None:
    if isinstance(value, dict):
        return
    with pytest.raises(RemoteProtocolError):
        unpack(msgpack.packb(value))


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x81\x01\x02", id="number as key"),
        pytest.param(b"\x81\xc4\x01a\x01", id="bytes as key"),
        pytest.param(b"\x81\xa1\xff\x01", id="text that is not UTF-8"),
        pytest.param(b"\x80\x80", id="more behind the end"),
        pytest.param(b"\x81\xa1t\xd4\x01\x00", id="extension"),
        pytest.param(b"\x81\xa1t\xc7\x00\x01", id="empty extension"),
        pytest.param(b"\x81\xa1t\xd6\xff\x00\x00\x00\x00", id="timestamp"),
        pytest.param(b"\x81\xa1t\xdd\xff\xff\xff\xff", id="array of four thousand million"),
        pytest.param(b"\xdf\xff\xff\xff\xff", id="map of four thousand million"),
        pytest.param(b"\x81\xa1t\xdb\xff\xff\xff\xff", id="text of four GiB"),
        pytest.param(b"\x81\xa1t" + b"\x91" * 100_000 + b"\x90", id="nested too deep"),
        pytest.param(msgpack.packb({"t": [0] * (MAX_ITEMS + 1)}), id="too many items"),
    ],
)
def test_a_hostile_message_is_refused_at_once(raw: bytes) -> None:
    started = time.process_time()
    with pytest.raises(RemoteProtocolError):
        unpack(raw)
    assert time.process_time() - started < 1


def test_a_message_carries_its_name_and_fields() -> None:
    packed = unpack(pack(Sample(3, words=("a", "b")), "sample"))
    assert packed == {"t": "sample", "number": 3, "text": "", "words": ["a", "b"], "digest": None, "facts": {}}


def test_unknown_fields_are_ignored_and_missing_ones_take_their_default() -> None:
    assert build(Sample, {"number": 1, "future": [1, 2]}) == Sample(1)
    with pytest.raises(RemoteProtocolError, match="without its field 'number'"):
        build(Sample, {"text": "x"})


@pytest.mark.parametrize(
    "wrong",
    [
        {"number": "1"},
        {"number": True},
        {"number": 1.0},
        {"number": None},
        {"number": -1},
        {"text": b"x"},
        {"words": "abc"},
        {"words": {}},
        {"words": ["a", 1]},
        {"words": [["a"]]},
        {"digest": "x"},
        {"digest": 0},
        {"facts": "abc"},
        {"facts": []},
        {"facts": None},
    ],
    ids=str,
)
def test_a_field_of_another_type_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(RemoteProtocolError, match="Sample"):
        build(Sample, {"number": 1, **wrong})


@given(st.dictionaries(st.sampled_from(["number", "text", "words", "digest", "facts"]), plain))
def test_whatever_is_built_holds_what_it_declares(fields: dict[str, Any]) -> None:
    try:
        sample = build(Sample, fields)
    except RemoteProtocolError:
        return
    assert type(sample.number) is int and sample.number >= 0
    assert type(sample.text) is str
    assert type(sample.words) is tuple and all(type(word) is str for word in sample.words)
    assert sample.digest is None or type(sample.digest) is bytes
    assert type(sample.facts) is dict
