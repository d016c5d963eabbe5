"""Stacks of a process on a pair's executable: from frame to frame, and every return address made the target's.

A frame pointer leads to the caller's saved frame pointer and, 8 bytes above, the address that the function returns to:
the only word of a frame that differs between the ISAs. The chain ends with a frame pointer of 0. Frames lie above each
other; anything else is a chain that does not hold, and no doubt is allowed: the dump is refused.

Stacks are read in blocks, and what changes of a page is written back as one range: over a link each is a message.
"""

import struct
from collections.abc import Iterator

from transform.errors import TransformError
from transform.isa.pair import Pair
from transform.memory import PAGE_SIZE, Memory

BLOCK = 1 << 16
"""Bytes read at once: some hundred frames."""
MAX_FRAMES = 1 << 24
"""A chain that is longer is not one."""


class Words:
    """Words of eight bytes of a process's memory, read in blocks; `flush` writes what was changed."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._blocks: dict[int, tuple[int, bytearray]] = {}
        self._last = 0, bytearray()
        self._changed: dict[int, tuple[int, int]] = {}

    def read(self, address: int) -> int:
        """The word at `address`. AddressError."""
        start, block = self._block(address)
        return int(struct.unpack_from("<Q", block, address - start)[0])

    def write(self, address: int, value: int) -> None:
        """Replace it. AddressError."""
        start, block = self._block(address)
        struct.pack_into("<Q", block, address - start, value)
        page = address - address % PAGE_SIZE
        first, last = self._changed.get(page, (address, address))
        self._changed[page] = min(first, address), max(last, address)

    def flush(self) -> None:
        """Write all changes to the dump."""
        for first, last in self._changed.values():
            start, block = self._block(first)
            self._memory.write(first, bytes(block[first - start : last + 8 - start]))
        self._changed.clear()

    def _block(self, address: int) -> tuple[int, bytearray]:
        start, block = self._last
        if not start <= address <= start + len(block) - 8:
            self._last = self._found(address)
        return self._last

    def _found(self, address: int) -> tuple[int, bytearray]:
        vma = self._memory.vma_at(address)
        start = max(address - address % BLOCK, vma.start)
        if start not in self._blocks or address + 8 > start + len(self._blocks[start][1]):
            end = min(address - address % BLOCK + BLOCK, vma.end)
            self._blocks[start] = start, bytearray(self._memory.read(start, end - start))
        return self._blocks[start]


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
