"""What CRIU says to a page server: one header for every command, in the two layouts there are, and what they mean.

Up to CRIU 4.1 a header has 24 bytes and counts pages in 32 bits; since 4.2 it has 32, counts in 64 and has four bytes
of padding, with anything in them. Nothing announces which. The first header of a connection tells: one that opens or
asks about a pagemap has zeros up to its id, one that asks for pages has its count before the address.

Source: recordings of CRIU 4.1.1 and 4.2.1; for the numbers that older clients send, what CRIU's own server accepts.
"""

import struct
from dataclasses import dataclass
from enum import Enum, IntEnum, IntFlag

from imgwire.errors import RemoteProtocolError

#: Bytes in a page: there is no field for it, so other page sizes cannot be told apart.
PAGE_SIZE = 4096
#: End of what any processor can address: 57 bits, of which a process has half.
MAX_ADDRESS = 1 << 57
#: PID_MAX_LIMIT of a 64-bit kernel.
MAX_PID = 1 << 22
#: Longest extent with pages, 64 MiB. CRIU empties one pipe at a time: 256 to 1024 pages, by how large pipes may be.
MAX_EXTENT_PAGES = 16384
#: Most pages asked for at once, 8 MiB; CRIU's lazy-pages asks for 4 at most. Less than any address: see `layout_of`.
MAX_ASKED_PAGES = 2048

_CODE_BITS = 16
_KIND_BITS = 8


class Layout(Enum):
    """How a header lies in its bytes."""

    NARROW = struct.Struct("<IIQQ")  #: CRIU 1.0 to 4.1
    WIDE = struct.Struct("<I4xQQQ")  #: CRIU 4.2 and later

    @property
    def size(self) -> int:
        """Bytes of a header."""
        return self.value.size


class Command(IntEnum):
    """What a header asks for. ADD, HOLE and OPEN are those of old clients."""

    ADD = 1
    HOLE = 2
    OPEN = 3
    OPEN2 = 4
    PARENT = 5
    ADD_F = 6
    GET = 7
    CLOSE = 0x1023
    FORCE_CLOSE = 0x1024


class PageFlag(IntFlag):
    """Where the pages of an extent are, as in a pagemap image."""

    PARENT = 1  #: as the round before has them
    LAZY = 2  #: they may come after the process runs again; alone: they are at the source still
    PRESENT = 4  #: they follow


class PagemapKind(Enum):
    """What has the memory."""

    TASK = 1  #: a process; the number is its pid in its own namespace
    SHMEM = 2  #: an anonymous shared mapping; the number is CRIU's shmid


_NONE = PageFlag(0)
_PAGE_FLAGS = 7  # all of PageFlag, as a number: an IntFlag's complement has none of the bits it does not know
_PAYLOAD_ALIGNED = 8  # CRIU's development branch, with compressed pages
_COMMANDS = frozenset(Command)

#: By number on the wire; the higher ones are those of clients up to CRIU 3.2.
_KINDS = {
    number: kind
    for kind, numbers in {PagemapKind.TASK: (1, 10, 11, 16, 17), PagemapKind.SHMEM: (2, 27, 28, 29, 32, 33, 34)}.items()
    for number in numbers
}


@dataclass(frozen=True)
class PagemapId:
    """A pagemap: of a task by its pid, of shared memory by its shmid."""

    kind: PagemapKind
    number: int

    @property
    def image_name(self) -> str:
        """The name that `criu dump` gives it: `pagemap-7.img`, `pagemap-shmem-7.img`."""
        return f"pagemap-{'shmem-' if self.kind is PagemapKind.SHMEM else ''}{self.number}.img"

    @classmethod
    def decode(cls, raw: int) -> "PagemapId":
        """From a header's id; RemoteProtocolError if it is none."""
        kind = _KINDS.get(raw & ((1 << _KIND_BITS) - 1))
        if kind is None or not raw >> _KIND_BITS:
            raise RemoteProtocolError(f"{raw:#x} is the id of no pagemap: neither a task's nor one of shared memory")
        number = raw >> _KIND_BITS
        return cls(kind, check_pid(number) if kind is PagemapKind.TASK else number)

    def encode(self) -> int:
        """As a header's id."""
        return self.number << _KIND_BITS | self.kind.value


@dataclass(frozen=True)
class Header:
    """A command; `address` in bytes, `target` a pagemap's id, encoded, or for GET a pid."""

    command: Command
    flags: PageFlag = _NONE
    pages: int = 0
    address: int = 0
    target: int = 0

    @property
    def end(self) -> int:
        """The first address after its pages."""
        return self.address + self.pages * PAGE_SIZE

    @classmethod
    def decode(cls, raw: bytes, layout: Layout) -> "Header":
        """From `layout.size` bytes; RemoteProtocolError for a command or a flag that is not known."""
        word, pages, address, target = layout.value.unpack(raw)
        command = command_of(raw)
        return cls(command, _flags(word >> _CODE_BITS, command), pages, address, target)

    def encode(self, layout: Layout) -> bytes:
        """Its bytes."""
        return layout.value.pack(self.flags << _CODE_BITS | self.command, self.pages, self.address, self.target)

    def check_pages(self, most: int) -> None:
        """RemoteProtocolError unless it tells pages that a process can have, `most` of them at most."""
        if not 0 < self.pages <= most:
            raise RemoteProtocolError(f"{self.command.name} of {self.pages} pages: the limit is {most}")
        if self.address % PAGE_SIZE or self.end > MAX_ADDRESS:
            raise RemoteProtocolError(f"{self.command.name} of {self.pages} pages at {self.address:#x}: not an address")


def check_pid(number: int) -> int:
    """Return `number` if it can be a pid, else raise RemoteProtocolError."""
    if not 0 < number <= MAX_PID:
        raise RemoteProtocolError(f"{number} is no pid")
    return number


def command_of(raw: bytes) -> Command:
    """The command of a header by its first bytes; RemoteProtocolError if it is not known."""
    code = int.from_bytes(raw[:2], "little")
    if code not in _COMMANDS:
        raise RemoteProtocolError(f"page server command {code:#x} ({raw[:8].hex()}): no released CRIU sends it")
    return Command(code)


def layout_of(raw: bytes) -> Layout | None:
    """The layout, by the first 24 bytes of a connection; None if they do not tell."""
    command = command_of(raw)
    _, _, second, third = Layout.NARROW.value.unpack(raw)
    if command is Command.GET:
        return Layout.WIDE if second <= MAX_ASKED_PAGES else Layout.NARROW
    if third:
        return Layout.NARROW
    return None if command in (Command.CLOSE, Command.FORCE_CLOSE) else Layout.WIDE


def _flags(raw: int, command: Command) -> PageFlag:
    unknown = raw & ~_PAGE_FLAGS if command is Command.ADD_F else raw
    if unknown:
        compressed = command is Command.ADD_F and unknown & _PAYLOAD_ALIGNED
        hint = "compressed pages? Run criu without --compress" if compressed else "no released CRIU sends it"
        raise RemoteProtocolError(f"{command.name} with flag {unknown:#x}: {hint}")
    return PageFlag(raw)


@dataclass(frozen=True)
class ParentAsked:
    """Does the round before have this pagemap? `answer_parent`. The pre-dump that asks has the process frozen."""

    pagemap: PagemapId


@dataclass(frozen=True)
class PagemapOpened:
    """The extents of a pagemap follow; with `asks`, once `answer_open` has told whether the round before has it."""

    pagemap: PagemapId
    asks: bool


@dataclass(frozen=True)
class Extent:
    """Pages that lie together. `size` bytes of payload follow, none if they are not present."""

    pagemap: PagemapId
    address: int
    pages: int
    flags: PageFlag

    @property
    def size(self) -> int:
        """Bytes of payload."""
        return self.pages * PAGE_SIZE if self.flags & PageFlag.PRESENT else 0


@dataclass(frozen=True)
class PageBytes:
    """Some of an extent's payload. It can be taken by other means: see `PageServerConnection.body_left`."""

    data: bytes


@dataclass(frozen=True)
class PagesAsked:
    """The client wants pages of a task: `answer_get`, in the order of the requests."""

    pid: int
    address: int
    pages: int


@dataclass(frozen=True)
class Closing:
    """All is said: `answer_close`. The client hangs up then; `forced`: it cannot, so we do."""

    forced: bool


@dataclass(frozen=True)
class Abandoned:
    """The client is gone before its CLOSE was answered: the round has failed."""

    where: str


PageServerEvent = ParentAsked | PagemapOpened | Extent | PageBytes | PagesAsked | Closing | Abandoned
