"""Addresses of what lies on stacks: where it lies on the target's.

Every word of eight bytes whose value lies in the live part of a thread's stack is taken for a pointer: the records say
which values are pointers, but not where a structure has one. It must point into a variable, or behind its last byte, or
be a frame pointer, else it is not known what it means. Variables of all threads are known here, since threads point to
each other's.

A compiler's records can name one variable several times, by parts of it: these are one here if they agree.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Mapping

from transform.errors import TransformError

_WORD = 8


Moved = tuple[int, int, int]
"""A variable: where it begins on the source's stack, where it ends, and where it begins on the target's."""


class Pointers:
    """What lies on the stacks of one process."""

    def __init__(self, live: Iterable[tuple[int, int]], variables: Iterable[Moved], frames: Mapping[int, int]) -> None:
        """`live`: first and end of each stack's live part; `frames`: frame pointers, and the target's. TransformError
        for variables that overlap and are moved by different distances."""
        self._live = sorted(live)
        self._lows = [low for low, _ in self._live]
        self.low = min(self._lows, default=0)
        self.high = max((end for _, end in self._live), default=0)
        self._frames = frames
        self._variables = _merged(variables)
        self._starts = [start for start, _, _ in self._variables]

    def moved(self, value: int, who: str) -> int:
        """A word for the target: the value itself if it is no address on a stack. TransformError."""
        if not self.low <= value < self.high:
            return value
        index = bisect_right(self._starts, value) - 1
        if index >= 0:
            start, end, target = self._variables[index]
            if value <= end:
                return value - start + target
        if value in self._frames:
            return self._frames[value]
        if not self._on_a_stack(value):
            return value
        raise TransformError(f"{who}: has the address {value:#x}, which is on a stack and in no variable that is known")

    def moved_words(self, data: bytes, address: int, who: str) -> bytes:
        """The bytes for the target. `address`: only how they lie to words counts. TransformError."""
        first = -address % _WORD
        count = (len(data) - first) // _WORD
        if count <= 0:
            return data
        low, high = self.low, self.high
        words = struct.unpack_from(f"<{count}Q", data, first)
        found = [(index, word) for index, word in enumerate(words) if low <= word < high]
        if not found:
            return data
        changed = bytearray(data)
        for index, word in found:
            struct.pack_into("<Q", changed, first + index * _WORD, self.moved(word, who))
        return bytes(changed)

    def _on_a_stack(self, value: int) -> bool:
        index = bisect_right(self._lows, value) - 1
        return index >= 0 and value < self._live[index][1]


def _merged(variables: Iterable[Moved]) -> list[Moved]:
    """By address, none within another."""
    merged: list[Moved] = []
    first, last, place = 0, -1, 0
    for start, end, target in sorted(variables):
        if start > last or (start == last and first < start):
            first, last, place = start, end, target
            merged.append((start, end, target))
        elif target - start != place - first:
            reason = f"variables at {first:#x} and {start:#x} overlap on one ISA only"
            raise TransformError(f"{reason}: the records cannot be followed")
        elif end > last:
            last = end
            merged[-1] = first, end, place
    return merged
