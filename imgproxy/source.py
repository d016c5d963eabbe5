"""What the source knows of its session at the cache: its state, the answers to what was asked, read-back and patch."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count

import trio

from imgnode.channel import Payload
from imgnode.nursery import flat_nursery
from imgnode.signalling import Changes
from imgproxy.outgoing import Outgoing
from imgproxy.page_pump import SentImage
from imgproxy.sender import ImageSender
from imgwire import messages
from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.frames import MAX_DATA
from imgwire.states import RUNS_THERE, SessionState
from transform.memory import PageStore

#: Places in which pages may be wanted at once: a thread each that waits, in all processes of a big tree.
MAX_WANTED = 1 << 16
#: Bytes of pages that are asked for and have not come: what may be in memory here and there besides.
MAX_UNDER_WAY = 8 * MAX_DATA


class LinkLost(Exception):
    """The cache cannot be reached, or does not have the session any more. The text says which."""


class SessionAborted(Exception):
    """The cache has given the session up; the text is its reason."""


@dataclass
class CacheView:
    """What the cache has said. Receives the link's messages."""

    changes: Changes = field(default_factory=Changes)
    state: SessionState = SessionState.RECEIVING
    detail: str = ""
    restore_ready: bool = False  #: a criu restore waits there for its images
    restore_failures: list[str] = field(default_factory=list)
    lost: str = ""  #: why there is no link any more
    times: dict[str, float] = field(default_factory=dict)  #: when each state was heard of, by trio's clock
    wanted: deque[messages.WantPages] = field(default_factory=deque)  #: pages that the process there waits for
    lacking: list[messages.Lacking] = field(default_factory=list)  #: what it lacks, told to who takes over
    _replies: dict[int, messages.Reply] = field(default_factory=dict)
    _numbers: "count[int]" = field(default_factory=lambda: count(1))

    def on_message(self, message: messages.Message) -> None:
        """Take a message of the cache's."""
        match message:
            case messages.Reply():
                self._replies[message.request] = message
            case messages.WantPages():
                if len(self.wanted) >= MAX_WANTED:
                    raise RemoteProtocolError(f"the cache wants pages in more than {MAX_WANTED} places at once")
                self.wanted.append(message)
            case messages.Lacking():
                self.lacking.append(message)
            case messages.State("restore-failed", detail):
                self.restore_failures.append(detail)
            case messages.State("restore-ready", _):
                self.restore_ready = True
            case messages.State(state, detail):
                self.learn(_state(state), detail)
            case _:
                raise LocalProtocolError(f"{type(message).__name__} reached a proxy")
        self.changes.notify()

    async def on_data(self, payload: Payload) -> None:
        """No cache sends image data."""
        raise LocalProtocolError("image data reached a proxy")

    def learn(self, state: SessionState, detail: str) -> None:
        """The session is in that state there."""
        self.state, self.detail = state, detail
        ago = _seconds(detail) if state in RUNS_THERE and detail else 0.0
        self.times[state] = trio.current_time() - ago
        self.changes.notify()

    def lose(self, reason: str) -> None:
        """There will be no more words from the cache."""
        self.lost = reason
        self.changes.notify()

    async def ask(
        self, out: Outgoing, make: Callable[[int], messages.ReadBack | messages.CheckCpu | messages.Sync]
    ) -> bytes:
        """Send the request that `make` makes of a number, wait for its answer's data.

        RemoteProtocolError with the cache's words if it was refused.
        """
        request = make(next(self._numbers))
        await out.send(request)
        await self.wait_for(lambda: request.request in self._replies)
        reply = self._replies.pop(request.request)
        if reply.error:
            raise RemoteProtocolError(reply.error)
        return reply.data

    async def wait_for(self, predicate: Callable[[], bool]) -> None:
        """Wait until `predicate` holds; LinkLost or SessionAborted if that cannot happen any more."""
        await self.changes.wait_until(lambda: predicate() or bool(self.lost) or self.state is SessionState.ABORTED)
        if predicate():
            return
        if self.state is SessionState.ABORTED:
            raise SessionAborted(self.detail)
        raise LinkLost(self.lost)


class RemotePages(PageStore):
    """The pages at the cache, for transforms: read back and patched over the link. Called from a worker thread.

    An image that was sent can also be read as it is, by whom a client asks.
    """

    def __init__(
        self, out: Outgoing, view: CacheView, sender: ImageSender, earlier: Mapping[str, SentImage] | None = None
    ) -> None:
        """`earlier`: the images of an earlier round; None: those of the one that is under way."""
        self._out, self._view, self._sender, self._earlier = out, view, sender, earlier

    def of(self, earlier: Mapping[str, SentImage]) -> "RemotePages":
        """The same for the images of an earlier round."""
        return RemotePages(self._out, self._view, self._sender, earlier)

    @property
    def _images(self) -> Mapping[str, SentImage]:
        return self._sender.images if self._earlier is None else self._earlier

    def read(self, image: str, offset: int, length: int) -> bytes:
        """The bytes of a range of a page image that was sent."""
        return self.read_all([(image, offset, length)])[0]

    def read_all(self, places: Sequence[tuple[str, int, int]]) -> list[bytes]:
        """All are asked for before the first has come, as far as there is room for the answers."""
        parts = [
            (index, self._images[image], offset + start, min(MAX_DATA, length - start))
            for index, (image, offset, length) in enumerate(places)
            for start in range(0, length, MAX_DATA)
        ]
        found: list[list[bytes]] = [[] for _ in places]
        for some in _at_once(parts):
            data = trio.from_thread.run(self._read, [part[1:] for part in some])
            for (index, *_), one in zip(some, data, strict=True):
                found[index].append(one)
        return [b"".join(one) for one in found]

    async def _read(self, places: Sequence[tuple[SentImage, int, int]]) -> list[bytes]:
        found = [b""] * len(places)

        async def read(index: int, place: tuple[SentImage, int, int]) -> None:
            found[index] = await self.read_image(*place)

        async with flat_nursery() as nursery:
            for index, place in enumerate(places):
                nursery.start_soon(read, index, place)
        return found

    def patch(self, image: str, offset: int, data: bytes) -> None:
        """Overwrite a range of a page image that was sent."""
        self.patch_all([(image, offset, data)])

    def patch_all(self, patches: Sequence[tuple[str, int, bytes]]) -> None:
        """Nothing is answered to them."""
        trio.from_thread.run(self._patch, patches)

    async def _patch(self, patches: Sequence[tuple[str, int, bytes]]) -> None:
        for image, offset, data in patches:
            for start in range(0, len(data), MAX_DATA):
                part = data[start : start + MAX_DATA]
                await self._out.send(messages.Patch(self._images[image].number, offset + start, part))

    async def read_image(self, image: SentImage, offset: int, length: int) -> bytes:
        """At most MAX_DATA bytes of an image, of any round."""
        number = image.number
        data = await self._view.ask(self._out, lambda request: messages.ReadBack(request, number, offset, length))
        if len(data) != length:
            raise RemoteProtocolError(f"{image.name}: {len(data)} bytes read back where {length} were asked for")
        return data


def _at_once(parts: Sequence[tuple[int, SentImage, int, int]]) -> Iterator[list[tuple[int, SentImage, int, int]]]:
    """Parts that may be asked for at the same time."""
    some: list[tuple[int, SentImage, int, int]] = []
    for part in parts:
        if some and sum(one[3] for one in some) + part[3] > MAX_UNDER_WAY:
            yield some
            some = []
        some.append(part)
    if some:
        yield some


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise RemoteProtocolError(f"the cache says that the process runs since {text!r} seconds") from None


def _state(name: str) -> SessionState:
    try:
        return SessionState(name)
    except ValueError:
        raise RemoteProtocolError(f"the cache says that the session is {name!r}") from None
