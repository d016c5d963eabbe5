"""What the sender keeps of a frame until the cache has processed it, so that a cut loses nothing.

Plain page payload moves from CRIU's pipe into one of ours, and `tee` makes a second set of references to send from.
The pages are those of the frozen process, so nothing is copied and the memory of this program does not grow.
Everything else is kept as the bytes that were sent.
"""

import os
from dataclasses import dataclass

from imgnode.pipes import PIPE_SIZE, Pipe, Sink, tee


@dataclass(frozen=True)
class KeptPipe:
    """`size` bytes of payload at the head of a pipe of ours."""

    pipe: Pipe
    size: int


Kept = bytes | KeptPipe


class Retention:
    """A pool of pipes that hold payload under way. At most as many as frames may be in flight.

    None is larger than `limit`, the size of the pipe that they are copied into: a user's pipes shrink when there are
    too many of them, and what is held must fit whole, page by page.
    """

    def __init__(self, limit: int = PIPE_SIZE) -> None:
        self._limit = limit
        self._free: list[Pipe] = []
        self._used: set[Pipe] = set()
        self.sink = Sink()

    def hold(self, fd: int, size: int) -> KeptPipe:
        """Take up to `size` bytes out of pipe `fd` and keep them; 0 at its end, BlockingIOError if it is empty."""
        if not self._free:
            self._free.append(Pipe(self._limit))
        pipe = self._free[-1]
        kept = KeptPipe(pipe, os.splice(fd, pipe.writer, size, flags=os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE))
        self._used.add(self._free.pop())
        return kept

    def copy_into(self, kept: KeptPipe, scratch: Pipe) -> bool:
        """Put references to all of `kept` into the pipe `scratch`, from which it is sent; False if it has no room."""
        try:
            return tee(kept.pipe.reader, scratch.writer, kept.size) == kept.size
        except BlockingIOError:
            return False

    def release(self, kept: Kept) -> None:
        """The frame was processed: its pipe can be used again."""
        if isinstance(kept, KeptPipe):
            self.sink.discard(kept.pipe.reader, kept.size)
            self._used.discard(kept.pipe)
            self._free.append(kept.pipe)

    def close(self) -> None:
        """Close every pipe, held or free."""
        for pipe in [*self._free, *self._used]:
            pipe.close()
        self._free.clear()
        self._used.clear()
        self.sink.close()
