"""The messages of the original `criu --remote`, against recorded bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire.errors import RemoteProtocolError
from imgwire.img_remote_messages import (
    LENGTH,
    MAX_LIST,
    MAX_MESSAGE,
    LocalEntry,
    OpenMode,
    RemoteEntry,
    decode_snapshot,
    message_length,
)

pytestmark = pytest.mark.t0

#: The first header of the recorded stream stream-pipe-dump, and one with a size of several bytes.
LIST = bytes.fromhex("0f0000000a06706172656e7412001880082008")
PAGES = bytes.fromhex("170000000a0b70616765732d312e696d671202733118012080c041")


def test_headers_are_as_recorded() -> None:
    assert RemoteEntry("parent", "", OpenMode.APPEND, 8).encode() == LIST
    pages = RemoteEntry("pages-1.img", "s1", OpenMode.WRITE, 1073152)
    assert pages.encode() == PAGES
    assert RemoteEntry.decode(PAGES[LENGTH.size :]) == pages


@given(st.integers(0, 1 << 62), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=100))
def test_what_is_encoded_is_decoded(size: int, snapshot: str) -> None:
    entry = RemoteEntry("pages-1.img", snapshot, OpenMode.WRITE, size)
    assert RemoteEntry.decode(entry.encode()[LENGTH.size :]) == entry
    local = LocalEntry("core-1.img", snapshot, OpenMode.READ)
    assert LocalEntry.decode(local.encode()[LENGTH.size :]) == local


def test_a_snapshot_id_is_a_path() -> None:
    assert decode_snapshot(b"\x0a\x02s1") == "s1"
    for wrong in (b"", b"\x0a\x03a\0b", b"\x08\x01", b"\x0a\x02\xff\xff", b"\x0a\x7fx", b"\x0d\0\0\0\0"):
        with pytest.raises(RemoteProtocolError):
            decode_snapshot(wrong)


@pytest.mark.parametrize("size", [0, MAX_MESSAGE + 1, 0xFFFFFFFF])
def test_a_length_that_no_message_has(size: int) -> None:
    with pytest.raises(RemoteProtocolError, match="the limit is 8192"):
        message_length(LENGTH.pack(size))


@pytest.mark.parametrize(
    ("name", "mode", "size"),
    [
        ("a.img", OpenMode.APPEND, 1),
        ("parent", OpenMode.WRITE, 1),
        ("a.img", OpenMode.READ, 1),
        ("../a.img", OpenMode.WRITE, 1),
        ("parent", OpenMode.APPEND, MAX_LIST + 1),
    ],
)
def test_headers_that_cannot_be(name: str, mode: OpenMode, size: int) -> None:
    with pytest.raises(RemoteProtocolError):
        RemoteEntry(name, "s1", mode, size)
