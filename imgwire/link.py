"""The link between proxy and cache, sans I/O: one `LinkConnection` per connection, one `Sequencer` per direction pair.

A session outlives its connections. Frames that matter are numbered; each side keeps what it has sent until the other
says that it was processed, and after a cut both tell in their greeting how far they came: the rest is sent again. So
the layers above see one ordered, reliable channel.

The payload of a DATA frame need not pass through here: after `DataStarted` the I/O may take `payload_left` bytes off
the socket by splice and report them by `payload_bypassed`.

    proxy                                   cache
    GREETING  -- Hello / Resolve -->        GREETING
              <-- Welcome / Resolved --
    OPEN      == CONTROL, DATA, ACK ==      OPEN
    CLOSED    <-- BYE or Refused -->        CLOSED
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from typing import Generic, TypeVar

from imgwire import messages
from imgwire.errors import LocalProtocolError, RemoteProtocolError
from imgwire.frames import HEADER_SIZE, FrameType, Header

#: Frames under way without acknowledgement. Each plain one holds a pipe (two descriptors) at the sender.
MAX_FRAMES_IN_FLIGHT = 64


class Role(Enum):
    """Which side of the link we are."""

    PROXY = auto()
    CACHE = auto()


class ConnectionState(Enum):
    """Where a connection is."""

    GREETING = auto()
    OPEN = auto()
    CLOSED = auto()


@dataclass(frozen=True)
class GreetingReceived:
    """The other side's first frame."""

    greeting: messages.Greeting


@dataclass(frozen=True)
class MessageReceived:
    """A numbered control message."""

    seq: int
    message: messages.Message


@dataclass(frozen=True)
class DataStarted:
    """A DATA frame's header; its payload follows, here or by the bypass."""

    header: Header


@dataclass(frozen=True)
class DataPayload:
    """Some of the payload of the DATA frame begun last."""

    data: bytes


@dataclass(frozen=True)
class DataEnded:
    """The DATA frame is whole."""

    header: Header


@dataclass(frozen=True)
class AckReceived:
    """The other side has processed every frame up to `seq`."""

    seq: int


@dataclass(frozen=True)
class ByeReceived:
    """The other side sends nothing more."""


Event = GreetingReceived | MessageReceived | DataStarted | DataPayload | DataEnded | AckReceived | ByeReceived

_PROXY_GREETINGS = (messages.Hello, messages.Resolve)
_CACHE_GREETINGS = (messages.Welcome, messages.Resolved, messages.Refused)
_TO_PROXY = (messages.Reply, messages.State, messages.WantPages, messages.Lacking)


class LinkConnection:
    """What one connection may carry, and what its bytes mean."""

    def __init__(self, role: Role) -> None:
        self._role = role
        self._state = ConnectionState.GREETING
        self._greeted = False
        self._buffer = bytearray()
        self._header: Header | None = None
        self._payload_left = 0

    @property
    def state(self) -> ConnectionState:
        """Where the connection is, judged by what was received."""
        return self._state

    @property
    def wanted(self) -> int:
        """How many bytes complete what is being received: a header, a message, or the rest of a payload."""
        if self._state is ConnectionState.CLOSED:
            return 0
        return self._payload_left or self._need() - len(self._buffer)

    @property
    def payload_left(self) -> int:
        """Bytes of DATA payload that come next on the connection."""
        return self._payload_left

    def receive_data(self, data: bytes | memoryview) -> list[Event]:
        """Take any number of bytes as they came; return what they mean."""
        events: list[Event] = []
        view = memoryview(data)
        while view:
            if self._state is ConnectionState.CLOSED:
                raise RemoteProtocolError(f"{len(view)} bytes after the end of the conversation")
            part, view = view[: self.wanted], view[self.wanted :]
            events += self._payload(part) if self._payload_left else self._collect(part)
        return events

    def receive_eof(self) -> None:
        """The connection ended; RemoteProtocolError if that was inside a frame."""
        inside = self._buffer or self._header is not None
        self._state = ConnectionState.CLOSED
        if inside:
            raise RemoteProtocolError("the connection ended in the middle of a frame")

    def payload_bypassed(self, size: int) -> list[Event]:
        """`size` bytes of the payload were taken off the connection by other means."""
        if not 0 < size <= self._payload_left:
            raise LocalProtocolError(f"{size} bytes bypassed where {self._payload_left} are left")
        self._payload_left -= size
        return [] if self._payload_left else [DataEnded(self._finish())]

    def greet(self, greeting: messages.Greeting) -> bytes:
        """The bytes of our greeting: the first thing that we send."""
        ours = _PROXY_GREETINGS if self._role is Role.PROXY else _CACHE_GREETINGS
        if self._greeted or not isinstance(greeting, ours):
            raise LocalProtocolError(f"{type(greeting).__name__} is not ours to send now")
        self._greeted = True
        payload = messages.encode(greeting)
        return Header(FrameType.HELLO, len(payload)).encode() + payload

    def _need(self) -> int:
        return HEADER_SIZE if self._header is None else self._header.length

    def _collect(self, part: memoryview) -> list[Event]:
        self._buffer += part
        if len(self._buffer) < self._need():
            return []
        raw = bytes(self._buffer)
        self._buffer.clear()
        return self._begin(raw) if self._header is None else self._message(raw)

    def _begin(self, raw: bytes) -> list[Event]:
        header = Header.decode(raw)
        if (header.type is FrameType.HELLO) is (self._state is ConnectionState.OPEN):
            raise RemoteProtocolError(f"{header.type.name} frame while {self._state.name.lower()}")
        if header.type is FrameType.ACK:
            return [AckReceived(header.seq)]
        if header.type is FrameType.BYE:
            self._state = ConnectionState.CLOSED
            return [ByeReceived()]
        if not header.length:
            raise RemoteProtocolError(f"empty {header.type.name} frame")
        self._header = header
        if header.type is not FrameType.DATA:
            return []
        if self._role is Role.PROXY:
            raise RemoteProtocolError("the cache sent image data")
        self._payload_left = header.length
        return [DataStarted(header)]

    def _payload(self, part: memoryview) -> list[Event]:
        return [DataPayload(bytes(part)), *self.payload_bypassed(len(part))]

    def _message(self, raw: bytes) -> list[Event]:
        header = self._finish()
        if header.type is FrameType.HELLO:
            return [GreetingReceived(self._check_greeting(messages.decode_greeting(raw)))]
        message = messages.decode_message(raw)
        if isinstance(message, _TO_PROXY) is not (self._role is Role.PROXY):
            raise RemoteProtocolError(f"{type(message).__name__} goes the other way")
        return [MessageReceived(header.seq, message)]

    def _check_greeting(self, greeting: messages.Greeting) -> messages.Greeting:
        theirs = _CACHE_GREETINGS if self._role is Role.PROXY else _PROXY_GREETINGS
        if not isinstance(greeting, theirs):
            raise RemoteProtocolError(f"{type(greeting).__name__} is not theirs to send")
        final = isinstance(greeting, messages.Refused | messages.Resolved)
        self._state = ConnectionState.CLOSED if final else ConnectionState.OPEN
        return greeting

    def _finish(self) -> Header:
        header, self._header = self._header, None
        if header is None:
            raise LocalProtocolError("no frame is under way")
        return header


def common_version(hello: messages.Hello) -> int:
    """The newest version that both sides speak; RemoteProtocolError names both if there is none."""
    version = min(hello.version, messages.VERSION)
    if version < max(hello.oldest, messages.OLDEST_VERSION):
        raise RemoteProtocolError(
            f"the proxy speaks link versions {hello.oldest} to {hello.version}, the cache "
            f"{messages.OLDEST_VERSION} to {messages.VERSION}: bring the older one up to date"
        )
    return version


_Payload = TypeVar("_Payload")


@dataclass(frozen=True)
class Sent(Generic[_Payload]):
    """A numbered frame that waits for its acknowledgement. `payload` is whatever the I/O needs to send it again."""

    header: Header
    payload: _Payload


class Sequencer(Generic[_Payload]):
    """Numbers of the frames of one session, and what is kept for sending again. Survives cuts."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._kept: deque[Sent[_Payload]] = deque()
        self._in_flight = 0
        self._sent = 0
        self._received = 0

    @property
    def next_seq(self) -> int:
        """The number that the next frame must carry."""
        return self._sent + 1

    @property
    def received(self) -> int:
        """The last frame of the other side's that was processed."""
        return self._received

    @property
    def in_flight(self) -> int:
        """Payload bytes sent and not acknowledged."""
        return self._in_flight

    def has_room(self, size: int) -> bool:
        """Whether a frame of `size` bytes may be sent now. One may always, whatever its size."""
        if not self._kept:
            return True
        return len(self._kept) < MAX_FRAMES_IN_FLIGHT and self._in_flight + size <= self._window

    def set_window(self, window: int) -> None:
        """Take the window that the other side grants."""
        self._window = window

    def keep(self, header: Header, payload: _Payload) -> None:
        """A frame with the next number is about to be sent; keep it until it is acknowledged."""
        if header.seq != self.next_seq:
            raise LocalProtocolError(f"frame {header.seq} sent where {self.next_seq} is due")
        self._sent = header.seq
        self._kept.append(Sent(header, payload))
        self._in_flight += header.length

    def acknowledge(self, seq: int) -> list[Sent[_Payload]]:
        """The other side has processed every frame up to `seq`; return those that need not be kept any more."""
        if seq > self._sent:
            raise RemoteProtocolError(f"acknowledgement of frame {seq}, but only {self._sent} were sent")
        released: list[Sent[_Payload]] = []
        while self._kept and self._kept[0].header.seq <= seq:
            frame = self._kept.popleft()
            self._in_flight -= frame.header.length
            released.append(frame)
        return released

    def resume(self, seq: int) -> list[Sent[_Payload]]:
        """After a cut: as `acknowledge`, but check that what is missing beyond `seq` is still kept."""
        first = self._kept[0].header.seq if self._kept else self._sent + 1
        if seq + 1 < first:
            raise RemoteProtocolError(f"asked to resume at frame {seq + 1}, acknowledged long ago")
        return self.acknowledge(seq)

    def unacknowledged(self) -> Iterator[Sent[_Payload]]:
        """The kept frames, oldest first."""
        return iter(tuple(self._kept))

    def check(self, seq: int) -> None:
        """A frame of the other side's begins; it must be the next one."""
        if seq != self._received + 1:
            raise RemoteProtocolError(f"frame {seq} came where {self._received + 1} was due")

    def accept(self, seq: int) -> None:
        """A frame of the other side's has been processed."""
        self.check(seq)
        self._received = seq
