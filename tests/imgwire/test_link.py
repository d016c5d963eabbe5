"""The link's state machines: any pieces, any garbage, versions, numbers, acknowledgement, resume."""

import struct
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire import messages
from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.frames import FrameType, Header
from imgwire.link import (
    MAX_FRAMES_IN_FLIGHT,
    AckReceived,
    ByeReceived,
    ConnectionState,
    DataEnded,
    DataPayload,
    DataStarted,
    GreetingReceived,
    LinkConnection,
    MessageReceived,
    Role,
    Sequencer,
    common_version,
)
from tests.imgwire.conversations import (
    IDENTITY,
    ack,
    bye,
    cache_greetings,
    control,
    data,
    feed,
    hello_frame,
    hellos,
    joined,
    proxy_greetings,
    split,
    to_cache,
    to_proxy,
)

pytestmark = pytest.mark.t0

HELLO = messages.Hello(IDENTITY, "web-1")
WELCOME = messages.Welcome(1)
cuts = st.lists(st.integers(0, 10**6), max_size=30)
payloads = st.binary(min_size=1, max_size=300)
data_frames = st.tuples(payloads, st.integers(0, 9), st.booleans()).map(
    lambda each: data(1, each[1], 4096, each[0], raw_length=77 if each[2] else None)
)
proxy_frames = st.lists(
    st.one_of(to_cache.map(lambda m: control(1, m)), data_frames, st.integers(0, 99).map(ack)), max_size=8
)
cache_frames = st.lists(st.one_of(to_proxy.map(lambda m: control(1, m)), st.integers(0, 99).map(ack)), max_size=8)


def opened(role: Role) -> LinkConnection:
    connection = LinkConnection(role)
    connection.receive_data(hello_frame(WELCOME if role is Role.PROXY else HELLO))
    assert connection.state is ConnectionState.OPEN
    return connection


# ---- one connection ----


@given(hellos, proxy_frames, cuts)
def test_what_a_proxy_says_means_the_same_in_any_pieces(
    hello: messages.Hello, frames: list[bytes], at: list[int]
) -> None:
    raw = hello_frame(hello) + b"".join(frames) + bye()
    whole = LinkConnection(Role.CACHE).receive_data(raw)
    assert joined(feed(LinkConnection(Role.CACHE), split(raw, at))) == joined(whole)
    assert whole[0] == GreetingReceived(hello)
    assert whole[-1] == ByeReceived()


@given(cache_frames, cuts)
def test_a_cache_means_the_same_in_any_pieces(frames: list[bytes], at: list[int]) -> None:
    raw = hello_frame(WELCOME) + b"".join(frames) + bye()
    whole = LinkConnection(Role.PROXY).receive_data(raw)
    assert joined(feed(LinkConnection(Role.PROXY), split(raw, at))) == joined(whole)
    assert len(whole) == len(frames) + 2


@given(st.sampled_from(Role), st.booleans(), st.binary(max_size=300), cuts)
def test_garbage_is_refused_and_nothing_else(role: Role, greeted: bool, raw: bytes, at: list[int]) -> None:
    connection = opened(role) if greeted else LinkConnection(role)
    with pytest.raises(RemoteProtocolError):
        feed(connection, split(raw + b"\0" * 32, at))


@given(
    st.sampled_from(Role),
    hellos.map(hello_frame) | cache_greetings.map(hello_frame),
    st.lists(
        st.one_of(to_cache.map(lambda m: control(1, m)), to_proxy.map(lambda m: control(1, m)), data_frames),
        max_size=3,
    ),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4),
    cuts,
)
def test_a_damaged_conversation_is_refused_or_understood(
    role: Role, greeting: bytes, frames: list[bytes], damage: list[tuple[int, int]], at: list[int]
) -> None:
    raw = bytearray(greeting + b"".join(frames))
    for place, value in damage:
        raw[place % len(raw)] = value
    connection = LinkConnection(role)
    try:
        feed(connection, split(bytes(raw), at))
        connection.receive_eof()
    except RemoteProtocolError:
        return
    assert connection.wanted == 0


@given(payloads, st.integers(1, 300))
def test_a_payload_may_bypass_us(payload: bytes, first: int) -> None:
    connection = opened(Role.CACHE)
    frame = data(1, 7, 0, payload)
    [started] = connection.receive_data(frame[:32])
    assert isinstance(started, DataStarted) and started.header.image == 7
    assert connection.payload_left == connection.wanted == len(payload)
    events = []
    taken = min(first, len(payload))
    events += connection.payload_bypassed(taken)
    if connection.payload_left:
        events += connection.receive_data(payload[taken:])
    assert joined(events)[-1] == DataEnded(started.header)
    assert connection.receive_data(ack(3)) == [AckReceived(3)]


def test_taking_more_than_there_is_is_our_mistake() -> None:
    connection = opened(Role.CACHE)
    connection.receive_data(data(1, 7, 0, b"abc")[:32])
    for size in (0, -1, 4):
        with pytest.raises(LocalProtocolError):
            connection.payload_bypassed(size)


def test_a_payload_comes_in_the_pieces_in_which_it_came() -> None:
    connection = opened(Role.CACHE)
    frame = data(1, 7, 0, b"abcdef")
    assert connection.receive_data(frame[:34])[1] == DataPayload(b"ab")
    assert connection.receive_data(frame[34:])[0] == DataPayload(b"cdef")


OPEN = control(1, messages.OpenImage(1, "files.img"))
REPLY = control(1, messages.Reply(1))


@pytest.mark.parametrize(
    ("role", "greeted", "raw", "reason"),
    [
        (Role.CACHE, False, OPEN, "CONTROL frame while greeting"),
        (Role.CACHE, False, ack(0), "ACK frame while greeting"),
        (Role.CACHE, False, bye(), "BYE frame while greeting"),
        (Role.CACHE, False, data(1, 1, 0, b"x"), "DATA frame while greeting"),
        (Role.CACHE, False, hello_frame(WELCOME), "Welcome is not theirs to send"),
        (Role.PROXY, False, hello_frame(HELLO), "Hello is not theirs to send"),
        (Role.CACHE, True, hello_frame(HELLO), "HELLO frame while open"),
        (Role.CACHE, True, REPLY, "Reply goes the other way"),
        (Role.PROXY, True, OPEN, "OpenImage goes the other way"),
        (Role.PROXY, True, data(1, 1, 0, b"x"), "the cache sent image data"),
        (Role.CACHE, True, Header(FrameType.CONTROL, 0, 1).encode(), "empty CONTROL frame"),
        (Role.CACHE, False, Header(FrameType.HELLO).encode(), "empty HELLO frame"),
        (Role.CACHE, True, data(1, 1, 0, b"", raw_length=5), "empty DATA frame"),
        (Role.CACHE, True, bye() + b"x", "after the end of the conversation"),
        (Role.PROXY, False, hello_frame(messages.Refused("no")) + ack(1), "after the end of the conversation"),
    ],
)
def test_what_does_not_belong_there_is_refused(role: Role, greeted: bool, raw: bytes, reason: str) -> None:
    connection = opened(role) if greeted else LinkConnection(role)
    with pytest.raises(RemoteProtocolError, match=reason):
        connection.receive_data(raw)


@pytest.mark.parametrize("greeting", [messages.Refused("full"), messages.Resolved("running")])
def test_some_answers_end_the_conversation(greeting: messages.Greeting) -> None:
    connection = LinkConnection(Role.PROXY)
    assert connection.receive_data(hello_frame(greeting)) == [GreetingReceived(greeting)]
    assert connection.state is ConnectionState.CLOSED and connection.wanted == 0
    connection.receive_eof()


@pytest.mark.parametrize("received", [1, 31, 32, 33])
def test_an_end_inside_a_frame_is_an_error(received: int) -> None:
    connection = opened(Role.CACHE)
    connection.receive_data(OPEN[:received])
    with pytest.raises(RemoteProtocolError, match="in the middle of a frame"):
        connection.receive_eof()


def test_an_end_between_frames_is_none() -> None:
    connection = opened(Role.CACHE)
    connection.receive_data(OPEN)
    connection.receive_eof()
    assert connection.state is ConnectionState.CLOSED


def test_a_length_of_four_gibibytes_is_refused_before_anything_is_kept() -> None:
    raw = struct.pack("<BB2sIIIQQ", FrameType.DATA, 0, b"IP", 1, 2**32 - 1, 2**32 - 1, 1, 0)
    with pytest.raises(RemoteProtocolError, match="the limit is"):
        opened(Role.CACHE).receive_data(raw)


def test_memory_is_bounded_however_long_the_conversation() -> None:
    connection = opened(Role.CACHE)
    frame = data(1, 1, 0, bytes(1 << 20)) + OPEN
    tracemalloc.start()
    for _ in range(20):
        for start in range(0, len(frame), 1 << 16):
            connection.receive_data(frame[start : start + (1 << 16)])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


@given(proxy_greetings)
def test_a_proxy_greets_once_and_only_as_a_proxy(greeting: messages.Greeting) -> None:
    connection = LinkConnection(Role.PROXY)
    assert LinkConnection(Role.CACHE).receive_data(connection.greet(greeting)) == [GreetingReceived(greeting)]
    with pytest.raises(LocalProtocolError):
        connection.greet(greeting)
    with pytest.raises(LocalProtocolError):
        LinkConnection(Role.CACHE).greet(greeting)


@given(cache_greetings)
def test_a_cache_greets_once_and_only_as_a_cache(greeting: messages.Greeting) -> None:
    connection = LinkConnection(Role.CACHE)
    assert LinkConnection(Role.PROXY).receive_data(connection.greet(greeting)) == [GreetingReceived(greeting)]
    with pytest.raises(LocalProtocolError):
        LinkConnection(Role.PROXY).greet(greeting)


# ---- versions ----


@pytest.mark.parametrize(("oldest", "version", "common"), [(1, 1, 1), (1, 7, 1), (0, 1, 1), (2, 3, None), (0, 0, None)])
def test_the_newest_common_version_is_spoken(oldest: int, version: int, common: int | None) -> None:
    hello = messages.Hello(IDENTITY, "x", version=version, oldest=oldest)
    if common is None:
        with pytest.raises(RemoteProtocolError, match=f"versions {oldest} to {version}, the cache 1 to 1"):
            common_version(hello)
    else:
        assert common_version(hello) == common


# ---- numbers, acknowledgement, resume ----


def filled(frames: int, *, window: int = 1 << 20, size: int = 10) -> Sequencer[str]:
    sequencer: Sequencer[str] = Sequencer(window)
    for number in range(1, frames + 1):
        sequencer.keep(Header(FrameType.CONTROL, size, sequencer.next_seq), f"frame {number}")
    return sequencer


def kept(sequencer: Sequencer[str]) -> list[int]:
    return [frame.header.seq for frame in sequencer.unacknowledged()]


def test_frames_are_numbered_from_one() -> None:
    sequencer = filled(3)
    assert kept(sequencer) == [1, 2, 3] and sequencer.next_seq == 4 and sequencer.in_flight == 30
    with pytest.raises(LocalProtocolError, match="frame 6 sent where 4 is due"):
        sequencer.keep(Header(FrameType.CONTROL, 1, 6), "")


@given(st.integers(0, 40), st.lists(st.integers(0, 40), max_size=10))
def test_an_acknowledgement_releases_all_up_to_it_once(frames: int, acks: list[int]) -> None:
    sequencer, released = filled(frames), list[int]()
    for seq in acks:
        if seq > frames:
            with pytest.raises(RemoteProtocolError, match="but only"):
                sequencer.acknowledge(seq)
        else:
            released += [frame.header.seq for frame in sequencer.acknowledge(seq)]
    highest = max((seq for seq in acks if seq <= frames), default=0)
    assert released == list(range(1, highest + 1))
    assert kept(sequencer) == list(range(highest + 1, frames + 1))
    assert sequencer.in_flight == 10 * len(kept(sequencer))


@given(st.integers(0, 20), st.integers(0, 20), st.integers(0, 25))
def test_a_resume_needs_what_is_missing(frames: int, acked: int, seq: int) -> None:
    sequencer = filled(frames)
    acked = min(acked, frames)
    sequencer.acknowledge(acked)
    if acked <= seq <= frames:
        sequencer.resume(seq)
        assert kept(sequencer) == list(range(seq + 1, frames + 1))
    else:
        with pytest.raises(RemoteProtocolError):
            sequencer.resume(seq)
        assert kept(sequencer) == list(range(acked + 1, frames + 1))


@given(st.lists(st.integers(0, 6), max_size=20))
def test_what_comes_is_taken_once_and_in_order(numbers: list[int]) -> None:
    sequencer, due = filled(0), 1
    for seq in numbers:
        step: Callable[[int], None] = sequencer.accept
        if seq == due:
            sequencer.check(seq)
            step(seq)
            due += 1
        else:
            with pytest.raises(RemoteProtocolError, match=f"where {due} was due"):
                step(seq)
    assert sequencer.received == due - 1


def test_the_window_bounds_bytes_and_frames() -> None:
    sequencer = filled(0, window=100)
    assert sequencer.has_room(10**9)  # one may always go, or a large frame would wait for ever
    sequencer.keep(Header(FrameType.CONTROL, 60, 1), "")
    assert sequencer.has_room(40) and not sequencer.has_room(41)
    sequencer.set_window(200)
    assert sequencer.has_room(140)
    assert not filled(MAX_FRAMES_IN_FLIGHT, size=1).has_room(1)
    assert filled(MAX_FRAMES_IN_FLIGHT - 1, size=1).has_room(1)


def test_receiving_says_what_the_message_was() -> None:
    assert opened(Role.CACHE).receive_data(OPEN) == [MessageReceived(1, messages.OpenImage(1, "files.img"))]
