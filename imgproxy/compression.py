"""When to compress: chunk by chunk, by what the link and the CPU give.

Plain payload costs no CPU of ours, so on a fast link compression can only lose. The link's rate is seen where sending
has to wait for it; the compressor's rate and ratio are seen on a chunk that is compressed on trial now and then.
Compressing pays if the slower of its two stages is faster than sending plain:

    max(raw / compressor rate, raw / ratio / link rate)  <  raw / link rate
"""

import time
from dataclasses import dataclass

import zstandard

from imgwire.errors import UsageError

#: The level that `auto` uses: of zstd's levels the one with the highest rate that still halves typical heaps.
AUTO_LEVEL = 1
#: Threads that compress at once: a chunk each.
THREADS = 2
#: A link above this many bytes/s is not even tried: level 1 does about half of that with two threads.
FAST_LINK = 1.2e9
#: Bytes sent before the link's rate is believed: they fill the socket's buffers first.
WARM_UP = 8 << 20
#: Bytes between two looks at the question.
INTERVAL = 32 << 20
#: Looks after which a trial is made again, although the last one did not pay: memory differs from place to place.
TRIAL_EVERY = 16
#: Compressing must promise this much, or it is left alone.
GAIN = 0.85


@dataclass
class _Rate:
    """A moving average of bytes per second, by bytes."""

    value: float = 0.0
    weight: float = 0.3

    def add(self, size: int, seconds: float) -> None:
        rate = size / max(seconds, 1e-9)
        self.value = rate if not self.value else self.value + self.weight * (rate - self.value)


class Compression:
    """`--compress off|auto|1..19` for one session."""

    def __init__(self, choice: str) -> None:
        self._auto = choice == "auto"
        self._level = _level(choice)
        self._on = self._level is not None
        self._zstd = _Rate()
        self._link = _Rate()
        self._ratio = 1.0
        self._seen = self._sent = 0
        self._busy = 0.0
        self._next_look = WARM_UP
        self._looks = 0  # since the last trial

    @property
    def wanted(self) -> bool:
        """Whether the next chunk is to be compressed."""
        return self._on

    def compress(self, data: bytes) -> bytes | None:
        """One zstd frame, or None if it would not be smaller. For a worker thread."""
        started = time.thread_time()
        packed = zstandard.ZstdCompressor(level=self._level or AUTO_LEVEL, write_content_size=True).compress(data)
        self._zstd.add(len(data) * THREADS, time.thread_time() - started)
        self._ratio += 0.3 * (len(data) / len(packed) - self._ratio)
        return packed if len(packed) < len(data) else None

    def sent(self, raw: int, wire_total: int, busy_total: float) -> None:
        """`raw` more bytes of image are out; so far `wire_total` bytes took `busy_total` seconds on the link."""
        self._seen += raw
        if self._auto and self._seen >= self._next_look:
            self._look(wire_total, busy_total)

    def _look(self, wire_total: int, busy_total: float) -> None:
        self._link.add(wire_total - self._sent, busy_total - self._busy)
        self._sent, self._busy = wire_total, busy_total
        self._next_look = self._seen + INTERVAL
        if self._link.value > FAST_LINK:
            self._on = False
        elif not self._zstd.value or self._looks == TRIAL_EVERY:
            self._looks = 0
            self._on = True  # a trial: its first chunks tell rate and ratio
            self._next_look = self._seen + (4 << 20)
        else:
            self._looks += 1
            self._on = self._pays()

    def _pays(self) -> bool:
        plain = 1 / self._link.value
        packed = max(1 / self._zstd.value, 1 / self._ratio / self._link.value)
        return packed < GAIN * plain


def _level(choice: str) -> int | None:
    if choice in ("off", "auto"):
        return None
    if choice.isascii() and choice.isdigit() and 1 <= int(choice) <= 19:
        return int(choice)
    raise UsageError(f"--compress {choice}: write off, auto or a zstd level from 1 to 19")
