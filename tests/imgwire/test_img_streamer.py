"""CRIU's image streamer protocol: recorded bytes in any pieces, and what CRIU would never send."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.img_streamer import MAX_REQUEST, Direction, ImageRequested, ImgStreamer, PipePassed, request
from tests.imgwire.conversations import RECORDED_DUMP, RECORDED_NAMES, names

pytestmark = pytest.mark.t0

Events = list[ImageRequested | PipePassed]
pieces = st.lists(st.integers(1, 20), max_size=60)


def capture(raw: bytes, sizes: list[int]) -> Events:
    """Take a dump's bytes as a kernel would give them: at most `wanted`, a descriptor with the byte that carries it."""
    protocol, events, sizes = ImgStreamer(Direction.CAPTURE), Events(), list(sizes)
    while raw:
        size = min(protocol.wanted, sizes.pop() if sizes else 1)
        events += protocol.receive_data(raw[:size], int(protocol.expects_fd))
        raw = raw[size:]
    protocol.receive_eof()
    return events


def serve(wanted: list[tuple[str, bool]], sizes: list[int]) -> tuple[Events, bytes]:
    """Ask for images, each there or not; return the events and what was answered."""
    protocol, events, answers, sizes = ImgStreamer(Direction.SERVE), Events(), b"", list(sizes)
    for name, exists in wanted:
        raw = request(name)
        while raw:
            size = min(protocol.wanted, sizes.pop() if sizes else 1)
            events += protocol.receive_data(raw[:size])
            raw = raw[size:]
        assert protocol.wanted == 0
        answers += protocol.answer(exists=exists)
        if exists:
            assert protocol.expects_fd and protocol.wanted == 1
            events += protocol.receive_data(b"\0", 1)
    protocol.receive_eof()
    return events, answers


@given(pieces)
def test_a_recorded_dump_means_the_same_in_any_pieces(sizes: list[int]) -> None:
    assert capture(RECORDED_DUMP, sizes) == [
        event for name in RECORDED_NAMES for event in (ImageRequested(name), PipePassed(name))
    ]


@given(st.lists(names, max_size=6), pieces)
def test_any_dump_means_the_same_in_any_pieces(images: list[str], sizes: list[int]) -> None:
    raw = b"".join(request(name) + b"\0" for name in images)
    assert capture(raw, sizes) == [event for name in images for event in (ImageRequested(name), PipePassed(name))]


@given(st.lists(st.tuples(names, st.booleans()), max_size=6), pieces)
def test_any_restore_means_the_same_in_any_pieces(images: list[tuple[str, bool]], sizes: list[int]) -> None:
    events, answers = serve(images, sizes)
    assert [event for event in events if isinstance(event, ImageRequested)] == [ImageRequested(n) for n, _ in images]
    assert [event for event in events if isinstance(event, PipePassed)] == [PipePassed(n) for n, here in images if here]
    assert answers == b"".join(bytes([2, 0, 0, 0, 8, here]) for _, here in images)


def test_the_request_is_the_recorded_one() -> None:
    assert b"".join(request(name) + b"\0" for name in RECORDED_NAMES) == RECORDED_DUMP


@given(st.sampled_from(Direction), st.binary(max_size=2000), pieces, st.integers(0, 3))
def test_garbage_is_refused_and_nothing_else(direction: Direction, raw: bytes, sizes: list[int], fds: int) -> None:
    protocol = ImgStreamer(direction)
    try:
        while raw:
            if not protocol.wanted:
                protocol.answer(exists=bool(fds))
            size = min(protocol.wanted, sizes.pop() if sizes else 1)
            protocol.receive_data(raw[:size], fds if protocol.expects_fd else 0)
            raw = raw[size:]
            assert protocol.wanted <= MAX_REQUEST
        protocol.receive_eof()
    except RemoteProtocolError:
        return


@given(st.binary(min_size=2, max_size=400))
def test_a_request_that_is_not_one_is_refused(body: bytes) -> None:
    protocol = ImgStreamer(Direction.CAPTURE)
    protocol.receive_data(struct.pack("<I", len(body)))
    try:
        events = protocol.receive_data(body)
    except RemoteProtocolError:
        return
    assert isinstance(events[0], ImageRequested)
    assert request(events[0].name)[4:] == body or body[1] >= 0x80


@pytest.mark.parametrize("length", [0, 1, MAX_REQUEST + 1, 2**31, 2**32 - 1])
def test_a_length_out_of_bounds_is_refused_before_anything_is_kept(length: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"a request of {length} bytes"):
        ImgStreamer(Direction.CAPTURE).receive_data(struct.pack("<I", length))


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "../../etc/passwd", "a/b.img", "a\0.img", "x" * 300, "a b", "a\n"]
)
def test_a_name_attack_is_refused(name: str) -> None:
    with pytest.raises(RemoteProtocolError, match="name"):
        capture(request(name), [1000] * 3)


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"\x0a\x03abcd", id="longer than it says"),
        pytest.param(b"\x0a\x05abcd", id="shorter than it says"),
        pytest.param(b"\x12\x04abcd", id="another field"),
        pytest.param(b"\x0a\xff\xff\xff\xff\x0fabc", id="length of four GiB"),
        pytest.param(b"\x0a\x80", id="length cut"),
        pytest.param(b"\x0a\x02\xc3\xa4", id="not ASCII"),
    ],
)
def test_a_body_that_is_not_crius_is_refused(body: bytes) -> None:
    with pytest.raises(RemoteProtocolError):
        capture(struct.pack("<I", len(body)) + body, [1000] * 3)


def test_a_descriptor_with_a_request_is_refused() -> None:
    with pytest.raises(RemoteProtocolError, match="1 descriptors came where 0 was due"):
        ImgStreamer(Direction.CAPTURE).receive_data(b"\x0b", 1)


@pytest.mark.parametrize("fds", [0, 2])
def test_exactly_one_descriptor_comes_with_the_pipe(fds: int) -> None:
    protocol = ImgStreamer(Direction.CAPTURE)
    protocol.receive_data(request("a.img")[:4])
    protocol.receive_data(request("a.img")[4:])
    with pytest.raises(RemoteProtocolError, match="descriptor"):
        protocol.receive_data(b"\0", fds)


@pytest.mark.parametrize("received", range(1, len(request("a.img")) + 1))
def test_the_end_inside_a_request_is_an_error(received: int) -> None:
    protocol = ImgStreamer(Direction.CAPTURE)
    for byte in request("a.img")[:received]:
        protocol.receive_data(bytes([byte]))
    with pytest.raises(RemoteProtocolError, match="in the middle"):
        protocol.receive_eof()
    assert protocol.wanted == 0


def test_our_own_mistakes_are_called_so() -> None:
    protocol = ImgStreamer(Direction.SERVE)
    with pytest.raises(LocalProtocolError, match="no request"):
        protocol.answer(exists=True)
    with pytest.raises(LocalProtocolError, match="were wanted"):
        protocol.receive_data(bytes(5))
    protocol.receive_eof()
    with pytest.raises(LocalProtocolError):
        protocol.receive_data(b"\0")


def test_an_event_checks_itself() -> None:
    with pytest.raises(RemoteProtocolError):
        ImageRequested("../x")
