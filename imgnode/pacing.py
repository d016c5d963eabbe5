"""`--limit-rate`: a token bucket over the bytes that go out on the link, compressed bytes included as they are.

The bucket holds a twentieth of a second, so a chunk is cut to that and other sessions on the link are not starved for
longer.
"""

import trio

#: Bucket size in seconds of the rate: short enough for an even flow, long enough not to wake up for each packet.
BURST = 0.05
#: Never cut chunks below this, however low the rate.
MIN_CHUNK = 1 << 14


class Pacer:
    """Lets `rate` bytes a second pass; None lets everything pass at once."""

    def __init__(self, rate: int | None) -> None:
        self._rate = rate
        self._free_at = 0.0  # the time at which everything let through so far has been paid for

    @property
    def limits(self) -> bool:
        """Whether there is a limit at all."""
        return self._rate is not None

    def largest_chunk(self, size: int) -> int:
        """`size`, cut so that one chunk takes about one burst."""
        return size if self._rate is None else min(size, max(MIN_CHUNK, int(self._rate * BURST)))

    async def pay(self, size: int) -> None:
        """Wait until `size` more bytes may go out."""
        if self._rate is None:
            return
        now = trio.current_time()
        self._free_at = max(self._free_at, now - BURST) + size / self._rate
        await trio.sleep_until(self._free_at)
