"""Post-copy: which pages of which process are here, where their bytes lie, and which must be asked for.

The source says of each run of pages whose they are, and sends their bytes, in the same order, as one long image. What
has come is kept until the process needs the source no more: the same page may be asked for again, after a fork.
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from imgcache.arena import Extent
from imgcache.image import StoredImage
from imgwire.errors import RemoteProtocolError
from imgwire.messages import LACKING, MAX_RUNS, Lacking, Pages, WantPages
from imgwire.page_ranges import PageRange, PageRanges
from imgwire.page_server_messages import MAX_ASKED_PAGES, PAGE_SIZE
from transform.errors import ImageError
from transform.images.pagemap import extents_at_source, task_of

#: Pages asked for at once, from the one that is wanted on: who waits for a page soon wants the next ones. CRIU asks for
#: one on a fault, and for up to 1024 in the background, of which it needs the first one most. With one at a time, nine
#: threads that went through 24 MiB on a busy machine took 28 s.
ASKED_AT_ONCE = 16


class Memory(Protocol):
    """Pages that a restored process has to wait for."""

    total: int  #: bytes

    @property
    def here(self) -> int:
        """Bytes that are here."""

    def find(self, pid: int, address: int, pages: int) -> list[Extent]:
        """Where the pages from `address` on are, as many as are here, `pages` at most; [] if the first is not."""
        ...

    def ask(self, pid: int, address: int) -> WantPages | None:
        """What to ask the source for, so that the page at `address` comes; None if it is here or on its way."""


class LazyMemory:
    """The memory that follows in one session. `image` takes its bytes, which come as those of `number`."""

    def __init__(self, image: StoredImage, number: int = 0) -> None:
        self.image, self.number = image, number
        self._due = PageRanges()  # neither here nor announced
        self._asked = PageRanges()  # ... but asked for
        self._coming: deque[tuple[PageRange, int]] = deque()  # announced; where they begin in the image
        self._end = 0  # of what was announced, in the image
        self._starts: dict[int, list[int]] = {}
        self._runs: dict[int, list[tuple[int, int]]] = {}  # first address behind, and offset in the image
        self.total = 0  #: bytes

    @property
    def here(self) -> int:
        """Bytes that have come."""
        return self.image.size

    def expect(self, images: Iterable[StoredImage]) -> None:
        """The images are complete: their pagemaps tell what the source has kept. RemoteProtocolError."""
        for image in images:
            pid = task_of(image.name)
            if pid is None:
                continue
            try:
                for start, end in extents_at_source(image.name, image.read(0, image.size)):
                    self._due.add(pid, start, end)
            except ImageError as error:
                raise RemoteProtocolError(str(error)) from error
        self.total = self._due.size

    def announce(self, message: Pages) -> None:
        """These pages come next. RemoteProtocolError if the source never had them, or has sent them before."""
        one = PageRange(message.pid, message.address, message.address + message.pages * PAGE_SIZE)
        if self._due.take(*one) != [one]:
            raise RemoteProtocolError(f"pages at {one.start:#x} of process {one.pid} that are not, or no more, to come")
        self._asked.take(*one)
        self._coming.append((one, self._end))
        self._end += one.end - one.start

    def begin_anew(self) -> None:
        """Another proxy goes on where one has died: what that had announced and not sent is due again, and as much
        wanted as what was asked for."""
        for one, _ in self._coming:
            self._due.add(*one)
            self._asked.add(*one)
        self._coming.clear()
        self._end = self.image.size

    def lacking(self) -> Iterator[Lacking]:
        """What is due, as the messages that tell it."""
        records = [LACKING.pack(*part) for one in self._due for part in _cut(one)]
        for start in range(0, max(len(records), 1), MAX_RUNS):
            told, more = records[start : start + MAX_RUNS], start + MAX_RUNS < len(records)
            yield Lacking(self.number, self._end, b"".join(told), more)

    def wanted(self) -> Iterator[WantPages]:
        """What was asked for and has not come."""
        return (WantPages(*part) for one in self._asked for part in _cut(one))

    def arrived(self) -> None:
        """The image has grown. RemoteProtocolError if by more than was announced."""
        if self.image.size > self._end:
            raise RemoteProtocolError("pages that were not announced")
        while self._coming:
            one, offset = self._coming[0]
            end = min(one.end, one.start + (self.image.size - offset) // PAGE_SIZE * PAGE_SIZE)
            if end <= one.start:
                return
            self._put(PageRange(one.pid, one.start, end), offset)
            self._coming.popleft()
            if end < one.end:
                self._coming.appendleft((PageRange(one.pid, end, one.end), offset + end - one.start))
                return

    def find(self, pid: int, address: int, pages: int) -> list[Extent]:
        """Where the pages from `address` on are, as many as are here, `pages` at most; [] if the first is not."""
        return [part for run in self._find(pid, address, address + pages * PAGE_SIZE) for part in run]

    def ask(self, pid: int, address: int) -> WantPages | None:
        """What to ask the source for, so that the page at `address` comes; None if it is here or on its way."""
        due = self._due.find(pid, address, address + ASKED_AT_ONCE * PAGE_SIZE)
        if not due or due[0].start != address or self._asked.find(pid, address, address + PAGE_SIZE):
            return None
        self._asked.add(*due[0])
        return WantPages(pid, address, due[0].pages)

    def _find(self, pid: int, start: int, end: int) -> Iterator[list[Extent]]:
        starts, runs = self._starts.get(pid, []), self._runs.get(pid, [])
        index = bisect_right(starts, start) - 1
        while 0 <= index < len(runs) and start < end and starts[index] <= start < runs[index][0]:
            behind, offset = runs[index]
            size = min(end, behind) - start
            yield list(self.image.extents(offset + start - starts[index], size))
            start += size
            index += 1

    def _put(self, one: PageRange, offset: int) -> None:
        """Pages that have come; with those right before them, in memory and in the image, they are one run."""
        starts, runs = self._starts.setdefault(one.pid, []), self._runs.setdefault(one.pid, [])
        index = bisect_right(starts, one.start)
        if index:
            behind, before = runs[index - 1]
            if behind == one.start and before + behind - starts[index - 1] == offset:
                runs[index - 1] = (one.end, before)
                return
        starts.insert(index, one.start)
        runs.insert(index, (one.end, offset))


def _cut(one: PageRange) -> Iterator[tuple[int, int, int]]:
    """Process, address and pages of its parts, each as large as may be asked for."""
    for start in range(one.start, one.end, MAX_ASKED_PAGES * PAGE_SIZE):
        yield one.pid, start, min(one.end - start, MAX_ASKED_PAGES * PAGE_SIZE) // PAGE_SIZE
