"""When to compress: chunk by chunk, by what is seen to be faster.

Plain payload costs no CPU of ours, so on a fast link compression can only lose; on a slow one it wins by its ratio.
Which it is depends on the link, on the memory and on who else wants the CPUs, and a model of all that is wrong
somewhere. So both ways are tried on the dump itself, one right after the other, and their rates compared, in bytes of
image per second of the clock. Now and then, and when the rate has changed, this is done again.
"""

import time

import zstandard

from imgwire.errors import UsageError

#: The level that `auto` uses: of zstd's levels the one with the highest rate that still halves typical heaps.
AUTO_LEVEL = 1
#: Threads that compress at once: a chunk each.
THREADS = 2
#: Above this many image bytes/s plain, compressing is not even tried: level 1 does about half of that with two threads.
FAST_LINK = 1.2e9
#: Bytes that are not measured: the first ones fill the buffers, those after a change were sent both ways.
WARM_UP = 8 << 20
SETTLING = 2 << 20
#: Bytes of the other way on trial, and of the first stretch.
TRIAL = 6 << 20
#: Bytes that a rate is measured over in between.
INTERVAL = 32 << 20
#: Intervals after which the other way is tried again.
TRIAL_EVERY = 16
#: ... or when the rate is this many times what it was, or that part of it.
CHANGED = 1.5
#: Compressing must be faster by this factor: it takes CPU that others could use.
GAIN = 1.15


class Compression:
    """`--compress off|auto|1..19` for one session."""

    def __init__(self, choice: str) -> None:
        self._auto = choice == "auto"
        self._level = _level(choice)
        self._usual = self._level is not None  # the way that is better, as far as is known
        self._on = self._usual
        self._compared = 0.0  # the usual way's rate when it was last compared with the other
        self._intervals = 0  # since then
        self._seen = self._start = 0  # bytes
        self._skip, self._stretch = WARM_UP, TRIAL
        self._since = 0.0

    @property
    def wanted(self) -> bool:
        """Whether the next chunk is to be compressed."""
        return self._on

    def compress(self, data: bytes) -> bytes | None:
        """One zstd frame, or None if it would not be smaller. For a worker thread."""
        packed = zstandard.ZstdCompressor(level=self._level or AUTO_LEVEL, write_content_size=True).compress(data)
        return packed if len(packed) < len(data) else None

    def sent(self, raw: int, now: float | None = None) -> None:
        """`raw` more bytes of pages are out, at the time `now` of time.monotonic()."""
        if not self._auto:
            return
        now = time.monotonic() if now is None else now
        before, self._seen = self._seen, self._seen + raw
        if before < self._skip:
            self._start, self._since = self._seen, now
        elif self._seen - self._start >= self._stretch:
            self._look((self._seen - self._start) / max(now - self._since, 1e-9), now)

    def _look(self, rate: float, now: float) -> None:
        """A stretch was sent at `rate`; choose how to send the next one."""
        if self._on is not self._usual:
            packed, plain = (rate, self._compared) if self._on else (self._compared, rate)
            self._usual = packed > GAIN * plain
            self._compared = packed if self._usual else plain
            self._go_on(self._usual, INTERVAL, now)
        elif self._trial_is_due(rate):
            self._compared, self._intervals = rate, 0
            self._go_on(not self._usual, TRIAL, now)
        else:
            self._intervals += 1
            self._go_on(self._usual, INTERVAL, now)

    def _trial_is_due(self, rate: float) -> bool:
        if not self._usual and rate > FAST_LINK:
            return False
        changed = not self._compared / CHANGED <= rate <= self._compared * CHANGED
        return changed or self._intervals >= TRIAL_EVERY

    def _go_on(self, on: bool, stretch: int, now: float) -> None:
        """Send the next `stretch` bytes compressed or not, and measure them."""
        self._skip = self._seen + (SETTLING if on is not self._on else 0)
        self._on, self._stretch = on, stretch
        self._start, self._since = self._seen, now


def _level(choice: str) -> int | None:
    if choice in ("off", "auto"):
        return None
    if choice.isascii() and choice.isdigit() and 1 <= int(choice) <= 19:
        return int(choice)
    raise UsageError(f"--compress {choice}: write off, auto or a zstd level from 1 to 19")
