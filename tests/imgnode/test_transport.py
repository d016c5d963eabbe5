"""Every transport behaves alike: bytes and pipes both ways, ends, cuts, closing."""

import os
import socket

import pytest
import trio
import trio.testing

from imgnode.transport import DescriptorTransport, SocketTransport, Transport
from tests.playbook import MakePair, filled_pipe, pipe_pair, random_bytes, socket_pair, stream_pair

pytestmark = pytest.mark.t1

PAIRS = pytest.mark.parametrize("pair", [socket_pair, pipe_pair, stream_pair])
SPLICING = pytest.mark.parametrize("pair", [socket_pair, pipe_pair])
LARGE = random_bytes(3 << 20)


async def receive(transport: Transport, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = await transport.receive_some(size - len(received))
        assert part, "the end came early"
        received += part
    return bytes(received)


@PAIRS
async def test_bytes_go_both_ways_at_once(pair: MakePair) -> None:
    left, right = pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(left.send_all, LARGE)
        nursery.start_soon(right.send_all, LARGE[::-1])
        assert await receive(right, len(LARGE)) == LARGE
        assert await receive(left, len(LARGE)) == LARGE[::-1]
    await left.aclose()
    assert await right.receive_some(1) == b""
    await right.aclose()


@PAIRS
async def test_sending_to_nobody_is_broken(pair: MakePair) -> None:
    left, right = pair()
    await right.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await left.send_all(LARGE)
    await left.aclose()


WAITS = [(pair, sending) for pair in (socket_pair, pipe_pair) for sending in (True, False)]


@pytest.mark.parametrize(("pair", "sending"), [*WAITS, (stream_pair, False)])
async def test_closing_wakes_who_waits(pair: MakePair, sending: bool) -> None:
    left, right = pair()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def wait() -> None:
            with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
                await (left.send_all(LARGE * 4) if sending else left.receive_some(1))

        await trio.testing.wait_all_tasks_blocked()
        await left.aclose()
    await left.aclose()
    await right.aclose()


@SPLICING
async def test_a_pipe_goes_out_and_comes_in(pair: MakePair) -> None:
    left, right = pair()
    assert left.splices
    data = random_bytes(1 << 20)
    received = b""
    with filled_pipe(data) as source, filled_pipe() as target:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(left.send_pipe, source.reader, len(data))
            while len(received) < len(data):
                size = await right.receive_pipe(target.writer, len(data) - len(received))
                received += os.read(target.reader, size)
        assert received == data
        await left.aclose()
        assert await right.receive_pipe(target.writer, 1) == 0
    await right.aclose()


@SPLICING
async def test_a_pipe_to_nobody_is_broken(pair: MakePair) -> None:
    left, right = pair()
    await right.aclose()
    with filled_pipe(b"abc") as source, pytest.raises(trio.BrokenResourceError):
        await left.send_pipe(source.reader, 3)
    await left.aclose()


async def test_a_stream_does_not_splice() -> None:
    left, right = stream_pair()
    assert not left.splices
    for call in (left.send_pipe, left.receive_pipe):
        with pytest.raises(NotImplementedError, match="StreamTransport does not splice"):
            await call(0, 1)
    await left.aclose()
    await right.aclose()


async def test_one_descriptor_may_serve_both_ways() -> None:
    near, far = socket.socketpair()
    transport, other = (
        DescriptorTransport(near.fileno(), near.detach()),
        DescriptorTransport(far.fileno(), far.detach()),
    )
    await transport.send_all(b"there")
    assert await other.receive_some(9) == b"there"
    await other.send_all(b"and back")
    assert await transport.receive_some(9) == b"and back"
    await transport.aclose()
    await other.aclose()


async def test_small_frames_over_tcp_are_not_delayed() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        stream = await trio.testing.open_stream_to_socket_listener(listener)
        transport = SocketTransport(stream.socket)
        assert stream.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await transport.aclose()
