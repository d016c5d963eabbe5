"""Connecting to a cache: where it can be, and what is said when it is not there."""

from pathlib import Path

import pytest
import trio

from imgnode.addresses import DescriptorAddress, FileAddress, TcpAddress, UnixAddress
from imgnode.channel import Channel
from imgnode.greeting import SessionRefused
from imgnode.nursery import flat_nursery
from imgproxy.dialer import CannotConnect, Dialer, Link
from imgproxy.source import CacheView
from imgwire.errors import UsageError
from imgwire.messages import Greeting, Hello, Refused, Resolve, Resolved, Welcome
from tests.imgwire.conversations import bye, hello_frame
from tests.playbook import IDENTITY, virtual_time

pytestmark = pytest.mark.t1

HELLO = Hello(IDENTITY, "web-1")


async def answer_each(listener: trio.SocketListener, *answers: bytes) -> None:
    """Give each connection, one after the other, its answer to whatever it says first, and hang up."""
    for answer in answers:
        stream = await listener.accept()
        async with stream:
            await stream.receive_some()
            await stream.send_all(answer)


async def run_link(answers: list[Greeting | bytes], patience: float = 30) -> CacheView:
    """A link to a cache that gives these answers, until the link is over."""
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host, port = listener.socket.getsockname()[:2]
    channel, view = Channel(), CacheView()
    link = Link(Dialer(TcpAddress(host, port)), channel, HELLO, view, patience=patience)
    raw = [answer if isinstance(answer, bytes) else hello_frame(answer) for answer in answers]
    try:
        async with listener, flat_nursery() as nursery:
            nursery.start_soon(answer_each, listener, *raw)
            await nursery.start(link.run)
            async with flat_nursery() as inner:
                inner.start_soon(view.changes.wait_until, lambda: bool(view.lost))
            nursery.cancel_scope.cancel()
    finally:
        channel.close()
    return view


async def test_nobody_there_is_said_with_the_address(node_dir: Path) -> None:
    for address in (TcpAddress("127.0.0.1", 1), UnixAddress(node_dir / "gone")):
        with pytest.raises(CannotConnect, match=str(address)):
            await Dialer(address).connect()
    with pytest.raises(CannotConnect, match="is imgcache running"):
        await Dialer(TcpAddress("127.0.0.1", 1)).connect()


def test_what_each_address_can_do() -> None:
    assert Dialer(TcpAddress("h", 1)).splices and Dialer(TcpAddress("h", 1)).redials
    assert not Dialer(DescriptorAddress(3, 4)).redials


async def test_a_file_is_no_peer(node_dir: Path) -> None:
    with pytest.raises(UsageError, match="not something to connect to"):
        await Dialer(FileAddress(node_dir / "x")).connect()


async def test_the_first_refusal_is_final() -> None:
    with pytest.raises(SessionRefused, match="full"):
        await run_link([Refused("full")])


async def test_a_cut_is_mended_until_the_cache_refuses() -> None:
    view = await run_link([Welcome(1), Welcome(1), b"", Welcome(1), Refused("the images are lost")])
    assert view.lost == "the images are lost"


@virtual_time
async def test_patience_ends() -> None:
    view = await run_link([Welcome(1), *[b""] * 10], patience=1)
    assert "cut off for 1 s" in view.lost


async def test_a_word_on_how_it_ended_is_delivered() -> None:
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    dialer = Dialer(TcpAddress(*listener.socket.getsockname()[:2]))
    async with listener, flat_nursery() as nursery:
        nursery.start_soon(answer_each, listener, hello_frame(Resolved("running")), bye())
        assert await dialer.resolve(Resolve(IDENTITY, commit=True)) == "running"
        with pytest.raises(CannotConnect):
            await dialer.resolve(Resolve(IDENTITY, commit=True))
