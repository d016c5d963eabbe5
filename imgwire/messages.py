"""What proxy and cache say to each other over the link: immutable messages that check themselves.

Greetings (HELLO frames) open each connection; the others travel in numbered CONTROL frames, so each arrives exactly
once and in order whatever happens to the connection in between.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from imgwire.errors import RemoteProtocolError
from imgwire.frames import MAX_DATA
from imgwire.names import check_image_name, check_session_name, check_snapshot
from imgwire.packing import build, pack, unpack
from imgwire.page_server_messages import MAX_ADDRESS, MAX_ASKED_PAGES, PAGE_SIZE, check_pid

#: Version of the link spoken here, and the oldest still understood.
VERSION = 1
OLDEST_VERSION = 1

#: Bytes of a page in `Compose`, whatever the page size of a node.
PAGE = 4096
#: In `Compose`: the source of pages that are zeroes.
ZEROES = 0xFFFFFFFF
#: A record of `Compose`: image that brought the pages, the first of them, how many.
RUN = struct.Struct("<IQI")
#: Records in one `Compose` or `Lacking`: 64 KiB, so that none holds up the pages behind it.
MAX_RUNS = 4096
#: A record of `Lacking`: process, address, how many pages.
LACKING = struct.Struct("<IQI")

_ID_LENGTH = 32  # 128 random bits in hex


# ---- greetings ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    """The proxy opens a session, or comes back to it after a cut (`resume`)."""

    session: str  #: 128 random bits in hex; who knows it may resume the session
    name: str  #: for people and directories
    version: int = VERSION
    oldest: int = OLDEST_VERSION
    resume: bool = False
    received: int = 0  #: last frame of the cache's that the proxy has processed
    wait_restored: bool = False  #: commit only after everything is restored
    need: int = 0  #: bytes that the images will take, about; 0 = not known
    facts: dict[str, Any] = field(default_factory=dict)  #: the source node
    shard: int = 0  #: which part of a checkpoint this stream is, where its frames are spread over several
    shards: int = 1  #: how many parts there are
    takeover: bool = False  #: post-copy: this proxy knows nothing of what another, which died, has sent and received

    def __post_init__(self) -> None:
        _check_id(self.session)
        check_session_name(self.name)
        if self.shard >= self.shards:
            raise RemoteProtocolError(f"hello of shard {self.shard} where there are {self.shards}")
        if self.version < self.oldest:
            raise RemoteProtocolError(f"hello with version {self.version} below its oldest, {self.oldest}")


@dataclass(frozen=True)
class Welcome:
    """The cache takes the session."""

    version: int
    received: int = 0  #: last frame of the proxy's that the cache has processed
    window: int = 0  #: bytes that may be under way without acknowledgement
    facts: dict[str, Any] = field(default_factory=dict)  #: the destination node


@dataclass(frozen=True)
class Refused:
    """The cache does not take the session; `reason` is one line for a person."""

    reason: str
    final: bool = True  #: whether trying again later is pointless


@dataclass(frozen=True)
class Resolve:
    """A source that is back after a crash tells how the session ended there."""

    session: str
    commit: bool
    reason: str = ""

    def __post_init__(self) -> None:
        _check_id(self.session)


@dataclass(frozen=True)
class Resolved:
    """The cache has written the outcome down. `state` is where the session is now."""

    state: str


Greeting = Hello | Welcome | Refused | Resolve | Resolved

# ---- proxy to cache ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class BeginRound:
    """A pre-dump or the dump begins. Rounds come one after the other, each with a higher number; a migration without
    pre-dumps is one round, number 0, that need not be begun."""

    round: int
    snapshot: str = ""  #: its images directory, as the original `criu --remote` calls it (with -D)

    def __post_init__(self) -> None:
        check_snapshot(self.snapshot)


@dataclass(frozen=True)
class DropRound:
    """That round failed: its images, all ended, are not of the migration."""

    round: int


@dataclass(frozen=True)
class OpenImage:
    """Image number `image` has this name, unique in its round. DATA follow, and if `digest` an xxh3-128 of them.

    `composed`: the DATA are not the image, but pages that it brings; `Compose` says what the image consists of.
    """

    image: int
    name: str
    digest: bool = False
    round: int = 0
    composed: bool = False

    def __post_init__(self) -> None:
        check_image_name(self.name)


@dataclass(frozen=True)
class Compose:
    """What a composed image consists of next: runs of pages that it, or another composed image, has brought by now."""

    image: int
    runs: bytes  #: records (see RUN): number of an image or ZEROES, which of the pages that it brought, how many

    def __post_init__(self) -> None:
        if not 0 < len(self.runs) <= MAX_RUNS * RUN.size or len(self.runs) % RUN.size:
            raise RemoteProtocolError(f"an image composed of {len(self.runs)} bytes of runs: a run has {RUN.size}")

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Source, first page, pages."""
        return RUN.iter_unpack(self.runs)


@dataclass(frozen=True)
class EndImage:
    """All bytes of the image have been sent."""

    image: int
    size: int  #: of the image, also where it is composed
    digest: bytes | None = None  #: xxh3-128 of the DATA, where announced


@dataclass(frozen=True)
class ReadBack:
    """Ask for a range of an image that the cache already holds."""

    request: int
    image: int
    offset: int
    length: int

    def __post_init__(self) -> None:
        if not 0 < self.length <= MAX_DATA:
            raise RemoteProtocolError(f"read-back of {self.length} bytes: the limit is {MAX_DATA}")


@dataclass(frozen=True)
class Patch:
    """Overwrite a range of an image before the set is complete."""

    image: int
    offset: int
    data: bytes

    def __post_init__(self) -> None:
        if not 0 < len(self.data) <= MAX_DATA:
            raise RemoteProtocolError(f"patch of {len(self.data)} bytes: the limit is {MAX_DATA}")


@dataclass(frozen=True)
class Sync:
    """Answer at once: all that was sent before has been processed then."""

    request: int


@dataclass(frozen=True)
class Restore:
    """Run `criu restore` with these options as soon as the images are there."""

    options: tuple[str, ...] = ()
    lazy: bool = False  #: the process runs before its memory, which comes with the images, is in its place


@dataclass(frozen=True)
class MemoryFollows:
    """Post-copy: part of the memory stays at the source until the process runs here. Its pages come as the bytes of
    number `image`, which is no image of the dump; `Pages` says which they are. Sent before `Restore`."""

    image: int


@dataclass(frozen=True)
class Pages:
    """The next `pages` pages among the bytes of `MemoryFollows` are those of process `pid`, from `address` on."""

    pid: int
    address: int
    pages: int

    def __post_init__(self) -> None:
        _check_pages(self.pid, self.address, self.pages)


@dataclass(frozen=True)
class CheckCpu:
    """Would this `cpuinfo.img` of the source pass `criu cpuinfo check` at the destination?"""

    request: int
    cpuinfo: bytes


@dataclass(frozen=True)
class ImagesComplete:
    """Every image has been sent and patched: nothing changes any more."""

    images: int
    size: int  #: bytes of all images together
    variant: str = ""  #: `pipe` or `nopipe`: how a `criu --remote` dump wrote them, and restore will read them


@dataclass(frozen=True)
class Commit:
    """The source's copy is dead: run here."""


@dataclass(frozen=True)
class Abort:
    """The process runs on at the source: never run it here."""

    reason: str


# ---- cache to proxy ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reply:
    """Answer to a request by number. `error` set: it was refused, for this reason."""

    request: int
    data: bytes = b""
    error: str = ""


@dataclass(frozen=True)
class State:
    """The session's state at the cache has changed: see `SessionState`."""

    state: str
    detail: str = ""


@dataclass(frozen=True)
class WantPages:
    """The process waits for these pages, or soon will: send them before others."""

    pid: int
    address: int
    pages: int

    def __post_init__(self) -> None:
        _check_pages(self.pid, self.address, self.pages)


@dataclass(frozen=True)
class Lacking:
    """To a proxy that took over: pages that the process lacks, all but what more of these messages tell. What is sent
    of them are bytes of number `image`, from `offset` on."""

    image: int
    offset: int
    ranges: bytes  #: records (see LACKING)
    more: bool = False  #: another such message follows

    def __post_init__(self) -> None:
        if len(self.ranges) > MAX_RUNS * LACKING.size or len(self.ranges) % LACKING.size:
            raise RemoteProtocolError(f"pages that are lacking, in {len(self.ranges)} bytes")
        for one in self:
            _check_pages(*one)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """Process, address, pages."""
        return LACKING.iter_unpack(self.ranges)


ToCache = (
    BeginRound
    | DropRound
    | OpenImage
    | Compose
    | EndImage
    | ReadBack
    | Patch
    | Sync
    | Restore
    | MemoryFollows
    | Pages
    | CheckCpu
    | ImagesComplete
    | Commit
    | Abort
)
ToProxy = Reply | State | WantPages | Lacking
Message = ToCache | ToProxy

_NAMES: dict[type[Any], str] = {
    Hello: "hello",
    Welcome: "welcome",
    Refused: "refused",
    Resolve: "resolve",
    Resolved: "resolved",
    BeginRound: "round",
    DropRound: "drop",
    OpenImage: "open",
    Compose: "compose",
    EndImage: "end",
    ReadBack: "read",
    Patch: "patch",
    Sync: "sync",
    Restore: "restore",
    MemoryFollows: "memory",
    Pages: "pages",
    CheckCpu: "cpu",
    ImagesComplete: "complete",
    Commit: "commit",
    Abort: "abort",
    Reply: "reply",
    State: "state",
    WantPages: "want",
    Lacking: "lacking",
}
_GREETINGS = {"hello", "welcome", "refused", "resolve", "resolved"}
_KINDS = {name: kind for kind, name in _NAMES.items()}


def encode(message: Greeting | Message) -> bytes:
    """The payload of the frame that carries `message`."""
    return pack(message, _NAMES[type(message)])


def decode_greeting(raw: bytes) -> Greeting:
    """The message in a HELLO frame."""
    greeting: Greeting = _decode(raw, greeting=True)
    return greeting


def decode_message(raw: bytes) -> Message:
    """The message in a CONTROL frame."""
    message: Message = _decode(raw, greeting=False)
    return message


def _decode(raw: bytes, *, greeting: bool) -> Any:
    fields = unpack(raw)
    name = fields.pop("t", None)
    if not isinstance(name, str) or name not in _KINDS or (name in _GREETINGS) is not greeting:
        raise RemoteProtocolError(f"a {'greeting' if greeting else 'message'} named {name!r}")
    return build(_KINDS[name], fields)


def _check_pages(pid: int, address: int, pages: int) -> None:
    check_pid(pid)
    if not 0 < pages <= MAX_ASKED_PAGES or address % PAGE_SIZE or address + pages * PAGE_SIZE > MAX_ADDRESS:
        raise RemoteProtocolError(f"{pages} pages at {address:#x} of process {pid}")


def _check_id(session: str) -> None:
    if len(session) != _ID_LENGTH or set(session) - set("0123456789abcdef"):
        raise RemoteProtocolError(f"session id {session[:64]!r} is not {_ID_LENGTH} hex digits")
