"""What tests of the link and of what hangs on it share: pairs of transports, channels that are cut, a receiver that
keeps what it gets, sessions and streams of images ready to use."""

import os
import random
import secrets
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial, wraps
from pathlib import Path
from typing import ParamSpec

import trio
import trio.testing

from imgcache.arena import Arena, MemoryBudget
from imgcache.session import Session
from imgnode.channel import Channel, Payload, Receiver
from imgnode.journal import Journal
from imgnode.metrics import Metrics
from imgnode.nursery import flat_nursery
from imgnode.pacing import Pacer
from imgnode.pipes import Pipe
from imgnode.transport import DescriptorTransport, SocketTransport, StreamTransport, Transport
from imgwire import messages
from imgwire.link import LinkConnection, Role

IDENTITY = "fedcba9876543210" * 2

_P = ParamSpec("_P")
MakePair = Callable[[], tuple[Transport, Transport]]


def virtual_time(test: Callable[_P, Awaitable[None]]) -> Callable[_P, None]:
    """Runs an async test by a clock that jumps ahead whenever all tasks wait: hours take no time.

    Threads are not seen as waiting: a test whose code uses them must not depend on how late it is.
    """

    @wraps(test)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        trio.run(partial(test, *args, **kwargs), clock=trio.testing.MockClock(autojump_threshold=0))

    return run


def random_bytes(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# ---- transports ----


def socket_pair() -> tuple[Transport, Transport]:
    left, right = trio.socket.socketpair()
    return SocketTransport(left), SocketTransport(right)


def pipe_pair() -> tuple[Transport, Transport]:
    (reader, far_writer), (far_reader, writer) = os.pipe(), os.pipe()
    return DescriptorTransport(reader, writer), DescriptorTransport(far_reader, far_writer)


def stream_pair() -> tuple[Transport, Transport]:
    left, right = trio.testing.memory_stream_pair()
    return StreamTransport(left), StreamTransport(right)


class CutTransport(Transport):
    """A transport that is cut once `budget` bytes have been sent through it: those before have arrived."""

    def __init__(self, transport: Transport, budget: int | None) -> None:
        self._transport, self._left = transport, budget
        self.splices = transport.splices

    async def send_all(self, data: bytes | memoryview, *, more: bool = False) -> None:
        size = self._allowed(len(data))
        await self._transport.send_all(memoryview(data)[:size], more=more)
        await self._cut_if(size < len(data))

    async def send_pipe(self, fd: int, size: int) -> None:
        allowed = self._allowed(size)
        await self._transport.send_pipe(fd, allowed)
        await self._cut_if(allowed < size)

    async def receive_some(self, size: int) -> bytes:
        return await self._transport.receive_some(size)

    async def receive_pipe(self, fd: int, size: int) -> int:
        return await self._transport.receive_pipe(fd, size)

    async def aclose(self) -> None:
        await self._transport.aclose()

    def _allowed(self, size: int) -> int:
        if self._left is None:
            return size
        allowed = min(size, self._left)
        self._left -= allowed
        return allowed

    async def _cut_if(self, cut: bool) -> None:
        if cut:
            await self._transport.aclose()
            raise trio.BrokenResourceError("cut by the test")


def greeted(role: Role) -> LinkConnection:
    """A connection on which both sides have greeted."""
    connection = LinkConnection(role)
    theirs = messages.Welcome(1) if role is Role.PROXY else messages.Hello(IDENTITY, "test")
    other = LinkConnection(Role.CACHE if role is Role.PROXY else Role.PROXY)
    connection.receive_data(other.greet(theirs))
    return connection


# ---- channels ----


class Collector:
    """Keeps every message and every image's bytes; checks that those come in order."""

    def __init__(self, *, splice: bool = False) -> None:
        self.messages: list[messages.Message] = []
        self.images: dict[int, bytearray] = {}
        self.frames = 0
        self._splice = splice

    def on_message(self, message: messages.Message) -> None:
        self.messages.append(message)

    async def on_data(self, payload: Payload) -> None:
        data = b""
        if self._splice and payload.splices:
            pipe = Pipe()
            try:
                while payload.left:
                    data += os.read(pipe.reader, await payload.splice(pipe))
            finally:
                pipe.close()
        while payload.left:
            data += await payload.read()
        image = self.images.setdefault(payload.header.image, bytearray())
        assert payload.header.offset == len(image), "bytes came twice, or not in order"
        image += data
        self.frames += 1


@contextmanager
def channels(pacer: Pacer | None = None) -> Iterator[tuple[Channel, Channel]]:
    """The proxy's channel and the cache's."""
    proxy, cache = Channel(pacer=pacer), Channel()
    try:
        yield proxy, cache
    finally:
        proxy.close()
        cache.close()


async def connected(
    proxy: Channel,
    cache: Channel,
    at_proxy: Receiver,
    at_cache: Receiver,
    *,
    pair: MakePair = socket_pair,
    cuts: Iterable[tuple[int | None, int | None]] = (),
) -> None:
    """Keep two channels connected for ever; the first connections are cut after so many bytes from either side."""
    for budgets in [*cuts, (None, None)]:
        transports = [CutTransport(end, budget) for end, budget in zip(pair(), budgets, strict=True)]
        proxy_received, cache_received = proxy.received, cache.received
        async with flat_nursery() as nursery:
            nursery.start_soon(proxy.run, transports[0], greeted(Role.PROXY), cache_received, at_proxy)
            if isinstance(at_cache, Session):
                nursery.start_soon(at_cache.attach, transports[1], greeted(Role.CACHE), proxy_received)
            else:
                nursery.start_soon(cache.run, transports[1], greeted(Role.CACHE), proxy_received, at_cache)


async def while_connected(run: Callable[[], Awaitable[None]], connection: Callable[[], Awaitable[None]]) -> None:
    """Do `run` with `connection` beside it."""
    async with flat_nursery() as nursery:
        nursery.start_soon(connection)
        await run()
        nursery.cancel_scope.cancel()


@contextmanager
def filled_pipe(data: bytes = b"") -> Iterator[Pipe]:
    """A pipe that holds `data` (up to a MiB); its writer stays open."""
    pipe = Pipe()
    try:
        assert os.write(pipe.writer, data) == len(data)
        yield pipe
    finally:
        pipe.close()


# ---- the cache's side ----


@contextmanager
def open_session(
    directory: Path, *, wait_restored: bool = True, budget: MemoryBudget | None = None, spool: Path | None = None
) -> Iterator[Session]:
    """A session that receives; its descriptors are given back at the end."""
    identity = secrets.token_hex(16)
    session = Session(
        identity,
        "test",
        wait_restored=wait_restored,
        directory=directory,
        arena=Arena(budget or MemoryBudget(None), spool),
        journal=Journal(str(directory), identity),
        metrics=Metrics(),
    )
    try:
        yield session
    finally:
        session.store.arena.close()
        session.source.channel.close()


async def put_image(session: Session, name: str, data: bytes) -> None:
    """Give the session an image as the link would, without a link."""
    number = len(session.store)
    session.store.open(messages.OpenImage(number, name))
    image = session.store.numbered(number)
    for start in range(0, len(data), 1 << 20):
        part = data[start : start + (1 << 20)]
        extent = session.store.arena.reserve(len(part), image.heap.last)
        await session.store.arena.fill(extent, 0, part)
        image.add(extent)
    session.store.end(messages.EndImage(number, len(data)))


def complete(session: Session) -> None:
    """Every image is there."""
    session.on_message(messages.ImagesComplete(len(session.store), session.store.size))


# ---- the proxy's side ----


class MemoryOutgoing:
    """Takes what a sender sends and keeps it; without splice, so that all bytes are seen."""

    splices = False

    def __init__(self) -> None:
        self.messages: list[messages.Message] = []
        self._images: dict[int, bytes] = {}

    async def send(self, message: messages.Message) -> None:
        await trio.lowlevel.checkpoint()
        self.messages.append(message)

    async def send_bytes(self, image: int, offset: int, data: bytes, *, raw_length: int | None = None) -> None:
        await trio.lowlevel.checkpoint()
        assert raw_length is None, "nothing was to be compressed"
        assert offset == len(self._images.get(image, b"")), "bytes came twice, or not in order"
        self._images[image] = self._images.get(image, b"") + data

    async def send_pipe(self, image: int, offset: int, fd: int) -> int:
        raise AssertionError("this one does not splice")

    @property
    def images(self) -> dict[str, bytes]:
        """The bytes of each image that was opened, by name."""
        opened = [message for message in self.messages if isinstance(message, messages.OpenImage)]
        return {message.name: self._images.get(message.image, b"") for message in opened}

    @property
    def ended(self) -> list[str]:
        """The names of the images that have ended, in that order."""
        opened = {message.image: message.name for message in self.messages if isinstance(message, messages.OpenImage)}
        return [opened[message.image] for message in self.messages if isinstance(message, messages.EndImage)]
