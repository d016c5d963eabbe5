"""Where pages of a frozen tree come from: `criu dump --lazy-pages`, or, if that cannot or has died, the processes.

Each request is two steps: how many of the pages come, then the pages, into a pipe, in any portions. The second source
can take over from the first in the middle of them.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import trio

from imgnode import proc
from imgnode.pipes import Pipe, splice_some, write_all
from imgnode.proc import ProcessId
from imgwire.errors import RemoteProtocolError
from imgwire.page_client import PageClient, PagesCome
from imgwire.page_ranges import PageRange
from imgwire.page_server_messages import Layout

#: Bytes read from a process at a time.
PORTION = 1 << 18


#: The pipe through which a CRIU reads its pages. It goes on without, and fails at the first request.
NEEDED_PIPE = 4 << 20
_CAP_SYS_RESOURCE = 1 << 24  # linux/capability.h


def page_server_works() -> bool:
    """Whether `criu dump` can serve pages here: it may have a pipe of the size that it needs."""
    if int(Path("/proc/sys/fs/pipe-max-size").read_text()) >= NEEDED_PIPE:
        return True
    status = Path("/proc/self/status").read_text().splitlines()
    effective = next((int(line.split()[1], 16) for line in status if line.startswith("CapEff:")), 0)
    return bool(effective & _CAP_SYS_RESOURCE)


class SourceGone(Exception):
    """Nothing comes from here any more; the text says why."""


class MemorySource(Protocol):
    """A source of pages. Requests come one after the other."""

    async def ask(self, one: PageRange) -> int:
        """Ask for these pages; how many of them, from the first on, will come. SourceGone."""
        ...

    async def move(self, due: PageRange, pipe: Pipe) -> int:
        """Put some of the pages that are due next into the pipe; how many bytes. SourceGone."""
        ...


class PageServerSource:
    """The page server of a CRIU that speaks `layout`, on a socket that it has inherited."""

    def __init__(self, sock: trio.socket.SocketType, layout: Layout) -> None:
        self._sock, self._client = sock, PageClient(layout)

    async def ask(self, one: PageRange) -> int:
        """Send the request and receive the head of its answer."""
        try:
            await self._sock.send(self._client.get(one.pid, one.start, one.pages))
            while True:
                data = await self._sock.recv(self._client.wanted)
                if not data:
                    raise SourceGone("criu dump has closed its page server")
                for event in self._client.receive_data(data):
                    if isinstance(event, PagesCome):
                        return event.pages
        except (OSError, RemoteProtocolError) as error:
            raise SourceGone(f"criu dump: {error}") from error

    async def move(self, due: PageRange, pipe: Pipe) -> int:
        """Splice what has come of the answer."""
        try:
            moved = await splice_some(self._sock.fileno(), pipe, self._client.body_left)
        except OSError as error:
            raise SourceGone(f"criu dump: {error}") from error
        if not moved:
            raise SourceGone("criu dump has closed its page server")
        self._client.body_bypassed(moved)
        return moved


class ProcessMemory:
    """The memory of frozen or stopped processes, known by their pids in the tree's own namespace."""

    def __init__(self, tree: Sequence[ProcessId]) -> None:
        self._tree = {proc.innermost_pid(task.pid): task for task in tree if proc.is_alive(task)}

    async def ask(self, one: PageRange) -> int:
        """All of them, if the process is there."""
        if one.pid not in self._tree or not proc.is_alive(self._tree[one.pid]):
            raise SourceGone(f"process {one.pid} is gone, and its memory with it")
        await trio.lowlevel.checkpoint()
        return one.pages

    async def move(self, due: PageRange, pipe: Pipe) -> int:
        """Read a portion."""
        data = await trio.to_thread.run_sync(self._read, due)
        await write_all(pipe.writer, data)
        return len(data)

    def _read(self, due: PageRange) -> bytes:
        try:
            fd = os.open(f"{proc.PROC}/{self._tree[due.pid].pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SourceGone(f"the memory of process {due.pid}: {error.strerror}") from error
        try:
            data = os.pread(fd, min(PORTION, due.end - due.start), due.start)
        except OSError as error:
            raise SourceGone(f"the memory of process {due.pid} at {due.start:#x}: {error.strerror}") from error
        finally:
            os.close(fd)
        if not data:
            raise SourceGone(f"process {due.pid} has nothing at {due.start:#x}")
        return data
