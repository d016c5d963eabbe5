"""Stacks of a process on a pair's executable: from frame to frame, and every return address made the target's.

A frame pointer leads to the caller's saved frame pointer and, 8 bytes above, the address that the function returns to:
the only word of a frame that differs between the ISAs. The chain ends with a frame pointer of 0. Frames lie above each
other; anything else is a chain that does not hold, and no doubt is allowed: the dump is refused.

Stacks are read in blocks, those of all threads at once where they begin, and what changes of a page is written back as
one range: over a link each is a message, and the way there and back counts once for all that go together.
"""

import struct
from collections.abc import Iterable, Iterator

from transform.errors import TransformError
from transform.extents import PAGE_SIZE
from transform.isa.pair import Pair
from transform.memory import Memory

BLOCK = 1 << 16
"""Bytes read at once: a thousand frames."""
FIRST_BLOCK = 1 << 14
"""Bytes read of each thread's stack to begin with: most have fewer frames than this holds."""
MAX_FRAMES = 1 << 24
"""A chain that is longer is not one."""


class Words:
    """Words of eight bytes of a process's memory, read in blocks; `flush` writes what was changed."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._blocks: dict[int, tuple[int, bytearray]] = {}  # by each page of theirs
        self._last = 0, bytearray()
        self._changed: dict[int, tuple[int, int]] = {}

    def expect(self, addresses: Iterable[int]) -> None:
        """Read what is at these addresses, and above, at once. AddressError."""
        blocks: list[tuple[int, int]] = []
        end = 0  # of what is in them
        for address in sorted(addresses):
            if address >= end:
                blocks.append(self._block_from(address, FIRST_BLOCK))
                end = sum(blocks[-1])
        for (start, _), data in zip(blocks, self._memory.read_all(blocks), strict=True):
            self._keep(start, data)

    def read(self, address: int) -> int:
        """The word at `address`. AddressError; TransformError if no word can be there."""
        start, block = self._block(address)
        return int(struct.unpack_from("<Q", block, address - start)[0])

    def write(self, address: int, value: int) -> None:
        """Replace it. AddressError, TransformError."""
        start, block = self._block(address)
        struct.pack_into("<Q", block, address - start, value)
        page = self._page(address)
        first, last = self._changed.get(page, (address, address))
        self._changed[page] = min(first, address), max(last, address)

    def flush(self) -> None:
        """Write all changes to the dump."""
        changes = []
        for first, last in self._changed.values():
            start, block = self._block(first)
            changes.append((first, bytes(block[first - start : last + 8 - start])))
        self._memory.write_all(changes)
        self._changed.clear()

    def _page(self, address: int) -> int:
        return address - address % PAGE_SIZE

    def _block(self, address: int) -> tuple[int, bytearray]:
        start, block = self._last
        if not start <= address <= start + len(block) - 8 or address % 8:
            if address % 8:
                raise TransformError(f"a stack at {address:#x}, which is no address of a word")
            page = self._page(address)
            if page not in self._blocks:
                first, length = self._block_from(address, BLOCK)
                self._keep(first, self._memory.read(first, length))
            self._last = self._blocks[page]
        return self._last

    def _block_from(self, address: int, size: int) -> tuple[int, int]:
        """Where a block with this address begins, and its length: up to what is mapped, or is there already."""
        start = self._page(address)
        end = min(start + size, self._memory.vma_at(address).end)
        there = (page for page in range(start + PAGE_SIZE, end, PAGE_SIZE) if page in self._blocks)
        return start, next(there, end) - start

    def _keep(self, start: int, data: bytes) -> None:
        block = start, bytearray(data)
        for page in range(start, start + len(data), PAGE_SIZE):
            self._blocks[page] = block


def frames(words: Words, frame: int, who: str) -> Iterator[tuple[int, int]]:
    """Where each return address lies, and what it is, from the innermost on. TransformError if the chain breaks."""
    for _ in range(MAX_FRAMES):
        if not frame:
            return
        if frame % 16:
            raise TransformError(f"{who}: a frame at {frame:#x}, which is no address of one")
        yield frame + 8, words.read(frame + 8)
        above = words.read(frame)
        if above and above <= frame:
            raise TransformError(f"{who}: the frame at {frame:#x} has its caller's below, at {above:#x}")
        frame = above
    raise TransformError(f"{who}: more than {MAX_FRAMES} frames")


def translate(words: Words, frame: int, pair: Pair, who: str) -> int:
    """Make every return address from `frame` on the target's; how many frames there are. TransformError."""
    count = 0
    for place, address in list(frames(words, frame, who)):
        words.write(place, translated(address, pair, who))
        count += 1
    return count


def translated(address: int, pair: Pair, who: str) -> int:
    """The target's return address for one of the source's. TransformError for what is none."""
    target = pair.return_address(address)
    if target is None:
        raise TransformError(f"{who}: returns to {address:#x}, which is behind no call of {pair.source.path.name}")
    return target
