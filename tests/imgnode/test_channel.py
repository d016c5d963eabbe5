"""The channel: every byte once and in order over whatever it runs on, however often that is cut."""

import fcntl
import os
import random
from collections.abc import Awaitable, Callable
from functools import partial
from itertools import cycle
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from imgnode.channel import HEARTBEAT, SILENCE, WINDOW, Channel, Payload
from imgnode.nursery import flat_nursery
from imgnode.pacing import Pacer
from imgnode.pipes import PIPE_SIZE, Pipe, Sink
from imgnode.transport import Transport
from imgwire import messages
from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.frames import MAX_DATA
from imgwire.link import MAX_FRAMES_IN_FLIGHT, Role
from tests.imgwire.conversations import ack, control, data
from tests.playbook import (
    Collector,
    MakePair,
    channels,
    connected,
    filled_pipe,
    greeted,
    pipe_pair,
    random_bytes,
    socket_pair,
    stream_pair,
    virtual_time,
    while_connected,
)

pytestmark = pytest.mark.t1

PAIRS = pytest.mark.parametrize("pair", [socket_pair, pipe_pair, stream_pair])
Cut = tuple[int | None, int | None]


async def write(pipe: Pipe, content: bytes, sizes: list[int]) -> None:
    """Fill a pipe as CRIU does, in pieces of the given sizes, then close it."""
    view, turn = memoryview(content), cycle(sizes)
    while view:
        piece, view = view[: (size := next(turn))], view[size:]
        while piece:
            try:
                piece = piece[os.write(pipe.writer, piece) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(pipe.writer)
    pipe.close_writer()


async def send_spliced(channel: Channel, image: int, content: bytes, sizes: list[int]) -> None:
    pipe, offset = Pipe(), 0
    try:
        async with flat_nursery() as nursery:
            nursery.start_soon(write, pipe, content, sizes)
            while True:
                try:
                    moved = await channel.send_pipe(image, offset, pipe.reader)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(pipe.reader)
                    continue
                if not moved:
                    break
                offset += moved
        assert offset == len(content)
    finally:
        pipe.close()


async def send_copied(channel: Channel, image: int, content: bytes, sizes: list[int]) -> None:
    offset = 0
    for size in cycle(sizes):
        if offset >= len(content):
            return
        part = content[offset : offset + size]
        await channel.send_bytes(image, offset, part)
        offset += len(part)


async def send_messages(channel: Channel, count: int) -> None:
    for number in range(count):
        await channel.send(messages.Abort(f"{number}"))


async def send_all(proxy: Channel, cache: Channel, images: list[tuple[bytes, bool, list[int]]], words: int) -> None:
    """Everything at once, in both directions, and until both know that it has arrived."""
    async with flat_nursery() as nursery:
        for number, (content, splice, sizes) in enumerate(images):
            nursery.start_soon(send_spliced if splice else send_copied, proxy, number, content, sizes)
        nursery.start_soon(send_messages, proxy, words)
        for number in range(words):
            await cache.send(messages.State(f"{number}"))
    await proxy.drain()
    await cache.drain()


async def exchange(
    images: list[tuple[bytes, bool, list[int]]], *, pair: MakePair, cuts: list[Cut], words: int = 5, splice: bool = True
) -> Collector:
    """Send the images (content, by splice or not, sizes of the pieces) and see that all arrived."""
    with channels() as (proxy, cache):
        at_proxy, at_cache = Collector(), Collector(splice=splice)
        await while_connected(
            lambda: send_all(proxy, cache, images, words),
            lambda: connected(proxy, cache, at_proxy, at_cache, pair=pair, cuts=cuts),
        )
        assert at_cache.messages == [messages.Abort(f"{number}") for number in range(words)]
        assert at_proxy.messages == [messages.State(f"{number}") for number in range(words)]
        assert {number: bytes(image) for number, image in at_cache.images.items()} == {
            number: content for number, (content, _, _) in enumerate(images) if content
        }
        assert proxy.kept_bytes == cache.kept_bytes == 0
        assert proxy.reconnects <= len(cuts)
        return at_cache


@PAIRS
@pytest.mark.parametrize("by_splice", [True, False])
@virtual_time
async def test_images_arrive_as_they_were(pair: MakePair, by_splice: bool) -> None:
    splices = by_splice and pair is not stream_pair
    images = [(random_bytes(3_000_000 + 7 * number, number), splices, [1 << 16, 5000]) for number in range(8)]
    await exchange(images, pair=pair, cuts=[])


contents = st.integers(0, 400_000).map(lambda size: random_bytes(size, size))
sizes_of_pieces = st.lists(st.integers(2000, 200_000), min_size=1, max_size=4)
image_lists = st.lists(st.tuples(contents, st.booleans(), sizes_of_pieces), min_size=1, max_size=8)
budgets = st.none() | st.integers(0, 100) | st.integers(0, 600_000)
cut_lists = st.lists(st.tuples(budgets, budgets).filter(lambda cut: cut != (None, None)), max_size=6)


@PAIRS
def test_a_link_that_is_cut_anywhere_loses_nothing(pair: MakePair) -> None:
    @settings(max_examples=30, suppress_health_check=list(HealthCheck))
    @given(image_lists, cut_lists, st.booleans())
    def check(images: list[tuple[bytes, bool, list[int]]], cuts: list[Cut], splice: bool) -> None:
        plain = [(content, by and pair is not stream_pair, sizes) for content, by, sizes in images]
        run = partial(exchange, plain, pair=pair, cuts=cuts, splice=splice)
        trio.run(run, clock=MockClock(autojump_threshold=0))

    check()


@pytest.mark.parametrize("seed", range(8))
@virtual_time
async def test_many_cuts_while_eight_images_are_sent(seed: int) -> None:
    dice = random.Random(seed)
    images = [
        (random_bytes(dice.randrange(2_000_000), number), dice.random() < 0.6, [dice.randrange(4096, 1 << 18)])
        for number in range(dice.randint(1, 8))
    ]
    cuts: list[Cut] = [(dice.randrange(300_000), None) for _ in range(20)]
    cuts += [(None, dice.randrange(200)) for _ in range(10)]
    dice.shuffle(cuts)
    await exchange(images, pair=dice.choice([socket_pair, pipe_pair]), cuts=cuts)


@virtual_time
async def test_compressed_frames_arrive_with_their_sizes() -> None:
    seen: list[tuple[bool, int, bytes]] = []

    class Headers(Collector):
        async def on_data(self, payload: Payload) -> None:
            seen.append((payload.header.compressed, payload.header.raw_length, await payload.read()))

    with channels() as (proxy, cache):

        async def run() -> None:
            await proxy.send_bytes(1, 0, b"packed", raw_length=4096)
            await proxy.send_bytes(1, 4096, b"plain")
            await proxy.drain()

        await while_connected(run, lambda: connected(proxy, cache, Collector(), Headers()))
    assert seen == [(True, 4096, b"packed"), (False, 5, b"plain")]


# ---- the window ----


async def read_and_keep_quiet(transport: Transport) -> None:
    """Take everything and acknowledge nothing, but be alive."""

    async def beat() -> None:
        while True:
            await trio.sleep(HEARTBEAT)
            await transport.send_all(ack(0))

    async with flat_nursery() as nursery:
        nursery.start_soon(beat)
        while await transport.receive_some(1 << 20):
            pass


async def read_nothing(transport: Transport) -> None:
    """Take nothing, but be alive."""
    while True:
        await trio.sleep(HEARTBEAT)
        await transport.send_all(ack(0))


@pytest.mark.parametrize("senders", [1, 8])
@pytest.mark.parametrize(("peer", "least"), [(read_and_keep_quiet, WINDOW - MAX_DATA), (read_nothing, MAX_DATA)])
@virtual_time
async def test_a_receiver_that_does_not_process_stops_the_senders(
    senders: int, peer: Callable[[Transport], Awaitable[None]], least: int
) -> None:
    async def send(image: int) -> None:
        for offset in range(0, 1 << 40, MAX_DATA):
            await proxy.send_bytes(image, offset, bytes(MAX_DATA))

    ours, theirs = socket_pair()
    with channels() as (proxy, _), trio.move_on_after(600):
        async with flat_nursery() as nursery:
            nursery.start_soon(peer, theirs)
            for image in range(senders):
                nursery.start_soon(send, image)
            await proxy.run(ours, greeted(Role.PROXY), 0, Collector())
    assert least <= proxy.kept_bytes <= WINDOW + senders * MAX_DATA
    assert proxy.reconnects == 0
    await theirs.aclose()


@virtual_time
async def test_senders_fill_the_window_without_a_connection_and_then_wait() -> None:
    with channels() as (proxy, cache):
        assert not proxy.connected
        for number in range(MAX_FRAMES_IN_FLIGHT):
            await proxy.send(messages.Abort(f"{number}"))
        with trio.move_on_after(1000) as scope:
            await proxy.send(messages.Abort("too many"))
        assert scope.cancelled_caught
        received = Collector()
        await while_connected(proxy.drain, lambda: connected(proxy, cache, Collector(), received))
        assert received.messages == [messages.Abort(f"{number}") for number in range(MAX_FRAMES_IN_FLIGHT)]


@virtual_time
async def test_a_granted_window_is_kept() -> None:
    with channels() as (proxy, _):
        proxy.set_window(100_000)
        with trio.move_on_after(1):
            for number in range(100):
                await proxy.send_bytes(1, number * 30_000, bytes(30_000))
        assert proxy.kept_bytes == 90_000


# ---- pipes: descriptors, memory ----


@virtual_time
async def test_an_empty_pipe_and_its_end() -> None:
    with channels() as (proxy, _), filled_pipe() as pipe:
        with pytest.raises(BlockingIOError):
            await proxy.send_pipe(1, 0, pipe.reader)
        assert os.write(pipe.writer, b"abc") == 3
        assert await proxy.send_pipe(1, 0, pipe.reader) == 3
        pipe.close_writer()
        assert await proxy.send_pipe(1, 3, pipe.reader) == 0
        assert proxy.kept_bytes == 3


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Discard(Collector):
    """Takes data by splice and drops it."""

    def __init__(self) -> None:
        super().__init__()
        self.pipe, self.sink, self.size = Pipe(), Sink(), 0

    async def on_data(self, payload: Payload) -> None:
        while payload.left:
            size = await payload.splice(self.pipe)
            self.sink.discard(self.pipe.reader, size)
            self.size += size

    def close(self) -> None:
        self.pipe.close()
        self.sink.close()


@virtual_time
async def test_pages_pass_without_memory_or_descriptors_growing() -> None:
    total, chunk = 256 << 20, random_bytes(1 << 16)
    discard = Discard()

    async def feed(pipe: Pipe) -> None:
        written = 0
        while written < total:
            try:
                written += os.write(pipe.writer, chunk[: total - written])
            except BlockingIOError:
                await trio.lowlevel.wait_writable(pipe.writer)
        pipe.close_writer()

    async def send() -> None:
        offset = 0
        async with flat_nursery() as nursery:
            nursery.start_soon(feed, pipe)
            while True:
                try:
                    moved = await proxy.send_pipe(1, offset, pipe.reader)
                except BlockingIOError:
                    await trio.lowlevel.wait_readable(pipe.reader)
                    continue
                if not moved:
                    break
                offset += moved
        await proxy.drain()

    with channels() as (proxy, cache), filled_pipe() as pipe:
        before = resident()
        await while_connected(send, lambda: connected(proxy, cache, Collector(), discard))
        assert resident() - before < 16 << 20
        assert len(list(Path("/proc/self/fd").iterdir())) < 4 * MAX_FRAMES_IN_FLIGHT
    assert discard.size == total
    discard.close()


async def test_payload_that_leaves_no_room_for_its_header_in_the_pipe_arrives_too() -> None:
    """Many small writes fill a pipe's slots long before its bytes."""
    parts = [random_bytes(7) for _ in range(2000)]
    collector = Collector()
    with channels() as (proxy, cache), filled_pipe() as pipe:
        fcntl.fcntl(pipe.writer, fcntl.F_SETFL, os.O_NONBLOCK | os.O_DIRECT)  # a slot for each write
        sent = 0
        for part in parts:
            try:
                sent += os.write(pipe.writer, part)
            except BlockingIOError:
                break

        async def send() -> None:
            assert await proxy.send_pipe(1, 0, pipe.reader) == sent
            await proxy.drain()

        await while_connected(send, lambda: connected(proxy, cache, Collector(), collector))
    assert sent > 7 * 200
    assert collector.images[1] == b"".join(parts)[:sent]


# ---- signs of life, and their absence ----


@virtual_time
async def test_heartbeats_keep_an_idle_connection_alive() -> None:
    with channels() as (proxy, cache):
        with trio.move_on_after(100 * SILENCE):
            await connected(proxy, cache, Collector(), Collector())
        assert proxy.reconnects == 0
        assert proxy.bytes_sent == pytest.approx(32 * 100 * SILENCE / HEARTBEAT, rel=0.01)


@virtual_time
async def test_a_silent_peer_is_given_up() -> None:
    with channels() as (proxy, _):
        ours, theirs = socket_pair()
        started = trio.current_time()
        assert await proxy.run(ours, greeted(Role.PROXY), 0, Collector()) is False
        assert trio.current_time() - started == pytest.approx(SILENCE)
        assert not proxy.connected
        await theirs.aclose()


@virtual_time
async def test_silence_inside_a_payload_is_noticed_too() -> None:
    with channels() as (_, cache):
        ours, theirs = socket_pair()
        await theirs.send_all(data(1, 1, 0, b"12345")[:-2])
        received = Collector()
        assert await cache.run(ours, greeted(Role.CACHE), 0, received) is False
        assert not received.frames and cache.received == 0
        await theirs.aclose()


@pytest.mark.parametrize("by_splice", [True, False])
@virtual_time
async def test_a_slow_rate_is_no_silence(by_splice: bool) -> None:
    """Frames of a MiB at 20 kB/s take most of a minute each."""
    content, rate = random_bytes(2 << 20), 20_000
    received, started = Collector(), trio.current_time()
    with channels(Pacer(rate)) as (proxy, cache):

        async def run() -> None:
            await (send_spliced if by_splice else send_copied)(proxy, 1, content, [1 << 20])
            await proxy.drain()

        await while_connected(run, lambda: connected(proxy, cache, Collector(), received))
        assert bytes(received.images[1]) == content
        assert proxy.reconnects == 0
        assert trio.current_time() - started == pytest.approx(len(content) / rate, rel=0.1)


# ---- ends ----


async def test_goodbye_is_told_from_a_cut() -> None:
    with channels() as (proxy, cache):
        near, far = socket_pair()
        async with flat_nursery() as nursery:
            nursery.start_soon(proxy.run, near, greeted(Role.PROXY), 0, Collector())
            while not proxy.connected:
                await trio.lowlevel.checkpoint()
            await proxy.say_bye()
            assert await cache.run(far, greeted(Role.CACHE), 0, Collector()) is True


async def test_goodbye_without_a_connection_says_nothing() -> None:
    with channels() as (proxy, _):
        await proxy.say_bye()
        assert proxy.bytes_sent == 0


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"x" * 32, "no frame header"),
        (ack(1), "only 0 were sent"),
        (control(2, messages.Commit()), "frame 2 came where 1 was due"),
        (data(2, 1, 0, b"x"), "frame 2 came where 1 was due"),
        (control(1, messages.Commit()) * 2, "frame 1 came where 2 was due"),
        (control(1, messages.Reply(1)), "goes the other way"),
    ],
    ids=["garbage", "acknowledged too much", "message lost", "data lost", "message twice", "wrong way"],
)
async def test_what_the_protocol_does_not_allow_comes_out_as_itself(raw: bytes, reason: str) -> None:
    with channels() as (_, cache):
        ours, theirs = socket_pair()
        await theirs.send_all(raw)
        with pytest.raises(RemoteProtocolError, match=reason):
            await cache.run(ours, greeted(Role.CACHE), 0, Collector())
        await theirs.aclose()


async def test_a_resume_that_cannot_be_is_refused() -> None:
    with channels() as (proxy, _):
        ours, theirs = socket_pair()
        with pytest.raises(RemoteProtocolError, match="only 0 were sent"):
            await proxy.run(ours, greeted(Role.PROXY), 5, Collector())
        await theirs.aclose()


async def test_a_receiver_must_take_its_frame() -> None:
    class Lazy(Collector):
        async def on_data(self, payload: Payload) -> None:
            return

    with channels() as (_, cache):
        ours, theirs = socket_pair()
        await theirs.send_all(data(1, 1, 0, b"x"))
        with pytest.raises(LocalProtocolError, match="not taken"):
            await cache.run(ours, greeted(Role.CACHE), 0, Lazy())
        await theirs.aclose()


@virtual_time
async def test_a_sender_that_is_cancelled_leaves_no_half_frame() -> None:
    """What it had begun to send is sent again, whole, on the next connection."""
    with channels() as (proxy, cache):
        ours, theirs = socket_pair()
        async with flat_nursery() as nursery:
            nursery.start_soon(proxy.run, ours, greeted(Role.PROXY), 0, Collector())
            while not proxy.connected:
                await trio.lowlevel.checkpoint()
            with trio.move_on_after(1) as scope:  # nobody reads: it fills the socket and waits
                await proxy.send_bytes(1, 0, bytes(MAX_DATA))
            assert scope.cancelled_caught
        assert not proxy.connected
        await theirs.aclose()
        received = Collector()
        await while_connected(proxy.drain, lambda: connected(proxy, cache, Collector(), received))
        assert received.images == {1: bytearray(MAX_DATA)}


@virtual_time
async def test_small_pipes_only_make_it_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unprivileged user's pipes shrink as more are opened: each of ours may have another size."""
    sizes = cycle([1 << 16, 4096, PIPE_SIZE])

    def as_large_as_allowed(fd: int, limit: int = PIPE_SIZE) -> int:
        return fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, min(limit, next(sizes)))

    monkeypatch.setattr("imgnode.pipes.enlarge", as_large_as_allowed)
    await exchange([(random_bytes(500_000), True, [700])], pair=socket_pair, cuts=[(100_000, None)])
