"""The TCP stream of the original image-proxy: as recorded, in any split, and broken."""

import gzip
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.img_remote_messages import OpenMode, RemoteEntry, encode_snapshots
from imgwire.img_remote_stream import ImageBegun, ImageBytes, ImageEnded, RemoteStream, StreamEvent

pytestmark = pytest.mark.t0

RECORDINGS = Path(__file__).parents[3] / "shared/fixtures/img-remote"


def recording(name: str) -> bytes:
    """One connection, whole."""
    path = RECORDINGS / f"{name}.bin.gz"
    if not path.exists():
        pytest.skip(f"the recording {path.name} is not here")
    return gzip.decompress(path.read_bytes())


def image(name: str, snapshot: str, body: bytes) -> bytes:
    """An image on the stream."""
    return RemoteEntry(name, snapshot, OpenMode.WRITE, len(body)).encode() + body


def ids(size: int, body: bytes) -> bytes:
    """A piece of the list of ids."""
    return RemoteEntry("parent", "", OpenMode.APPEND, size).encode() + body


def collected(events: list[StreamEvent]) -> dict[tuple[str, str], bytes]:
    """The images that came whole."""
    found: dict[tuple[str, str], bytes] = {}
    begun, body = None, b""
    for event in events:
        match event:
            case ImageBegun():
                begun, body = event, b""
            case ImageBytes(data):
                body += data
            case ImageEnded():
                assert begun is not None and len(body) == begun.size
                found[begun.snapshot, begun.name] = body
    return found


@pytest.mark.parametrize(
    ("name", "snapshots", "images"),
    [
        ("stream-pipe-dump", ["s1"], {"s1": 12}),
        ("stream-inc-2predumps-dump", ["s1", "s2", "s3"], {"s1": 3, "s2": 3, "s3": 12}),
        ("stream-orig-appends", ["s1", "s2", "s3-longer", "s4", "s5-longest-of-all"], None),
    ],
)
@pytest.mark.parametrize("step", [4099, 1 << 20])
def test_recordings(name: str, snapshots: list[str], images: dict[str, int] | None, step: int) -> None:
    raw, stream, events = recording(name), RemoteStream(), []
    for start in range(0, len(raw), step):
        events += stream.receive_data(raw[start : start + step])
    stream.receive_eof()
    assert stream.snapshots == snapshots
    found = Counter(snapshot for snapshot, _ in collected(events))
    assert found == (images or dict.fromkeys(snapshots, 2))


def test_a_recording_that_the_original_cache_could_not_take() -> None:
    raw, stream = recording("stream-orig-2predumps-corrupt"), RemoteStream()
    events = stream.receive_data(raw)
    with pytest.raises(RemoteProtocolError, match="ends in the middle of an image"):
        stream.receive_eof()
    whole = collected(events)
    assert {name for snapshot, name in whole if snapshot == "s1"} == {"pagemap-223.img", "inventory.img", "pages-1.img"}
    begun = [event for event in events if isinstance(event, ImageBegun)]
    assert (begun[-1].snapshot, begun[-1].name) not in whole, "the image that was cut"


CONVERSATION = (
    ids(8, encode_snapshots(["s1"]))
    + image("a.img", "s1", b"abc")
    + ids(8, b"")
    + image("empty.img", "s2", b"")
    + ids(15, b"1234567")
    + image("a.img", "s2", b"defg" * 100)
)


@given(st.lists(st.integers(1, len(CONVERSATION)), max_size=30))
def test_any_split_means_the_same(cuts: list[int]) -> None:
    stream, events, at = RemoteStream(), [], 0
    for cut in [*sorted(set(cuts)), len(CONVERSATION)]:
        events += stream.receive_data(CONVERSATION[at:cut])
        at = cut
    stream.receive_eof()
    assert stream.snapshots == ["s1", "s2"]
    assert collected(events) == {
        ("s1", "a.img"): b"abc",
        ("s2", "empty.img"): b"",
        ("s2", "a.img"): b"defg" * 100,
    }


def test_a_body_can_be_taken_by_other_means() -> None:
    stream = RemoteStream()
    header = RemoteEntry("pages-1.img", "s1", OpenMode.WRITE, 5 << 30).encode()
    assert stream.receive_data(header) == [ImageBegun("pages-1.img", "s1", 5 << 30)]
    assert stream.body_bypassed(4 << 30) == [] and stream.body_left == 1 << 30
    assert stream.body_bypassed(1 << 30) == [ImageEnded()]
    with pytest.raises(LocalProtocolError):
        stream.body_bypassed(1)


@pytest.mark.parametrize(
    "raw",
    [
        b"GET / HTTP/1.1\r\n",
        b"\xff" * 8,
        bytes.fromhex("15000000 0a05 612e696d67 1202 7331 1800 2001"),  # sent in order to be read
        RemoteEntry("parent", "", OpenMode.APPEND, 1).encode().replace(b"parent", b"paront"),
        bytes.fromhex("0f000000 0a03 2e2e2f 1202 7331 1801 2001"),
    ],
)
def test_garbage_is_refused(raw: bytes) -> None:
    stream = RemoteStream()
    with pytest.raises(RemoteProtocolError):
        stream.receive_data(raw)
        stream.receive_eof()


@pytest.mark.parametrize("cut", [1, 4, 10, len(CONVERSATION) - 1])
def test_a_cut_is_noticed(cut: int) -> None:
    stream = RemoteStream()
    stream.receive_data(CONVERSATION[:cut])
    with pytest.raises(RemoteProtocolError, match="in the middle"):
        stream.receive_eof()


@given(st.binary(max_size=200))
def test_any_bytes_give_events_or_the_error(raw: bytes) -> None:
    stream = RemoteStream()
    try:
        stream.receive_data(raw)
    except RemoteProtocolError as error:
        assert str(error)


def test_what_is_due_next_can_be_read_without_taking_of_an_image() -> None:
    stream, at, bodies = RemoteStream(), 0, 0
    while at < len(CONVERSATION):
        size = stream.wanted
        if size:
            events = stream.receive_data(CONVERSATION[at : at + size])
            assert not any(isinstance(event, ImageBytes) for event in events)
        else:
            assert not stream.between_images
            size = stream.body_left
            assert stream.body_bypassed(size) == [ImageEnded()]
            bodies += size
        at += size
    assert stream.between_images and bodies == len(b"abc" + b"defg" * 100)
