"""One run of the original `criu --remote` at the source, its connections, and what becomes of the tasks that it dumps.

Without our action script only the tasks tell how a dump ended: CRIU says "finish" in success and in failure.
"""

from dataclasses import dataclass, field

import trio

from imgnode import proc
from imgnode.criu_options import values_of
from imgnode.proc import ProcessId
from imgnode.remote_client import RemoteClient
from imgnode.unix import readable
from imgwire.errors import RemoteProtocolError

#: Seconds for tasks that CRIU has killed to be seen dying.
KILL_TIMEOUT = 2.0


@dataclass
class Run:
    """One run of CRIU, from its push on."""

    process: ProcessId | None  #: None where it cannot be seen
    snapshot: str
    images: set[str] = field(default_factory=set)  #: names of those that have begun
    open_images: int = 0
    last_seen: bool = False
    spoiled: bool = False  #: an image was not taken to its end, which CRIU need not know
    dumps: bool = False  #: it is known not to be a pre-dump
    announced: bool = False  #: it runs our action script, which ends the tree
    settled: trio.Event = field(default_factory=trio.Event)  #: CRIU has ended, and it is known what that means
    tasks: list[ProcessId] = field(default_factory=list)  #: that it has frozen; looked for where it is not announced

    @property
    def criu(self) -> int:
        """Its pid, 0 where it cannot be seen."""
        return self.process.pid if self.process else 0

    @property
    def alive(self) -> bool:
        """Whether it may say more."""
        return self.process is None or proc.is_alive(self.process)

    @property
    def whole(self) -> bool:
        """Whether every image has been read to its end."""
        return self.last_seen and not self.open_images and not self.spoiled


@dataclass(eq=False)
class Connection:
    """A connection until it has said what it wants; `heard` is set when that has been taken note of."""

    client: RemoteClient
    before: "Connection | None"  #: the one before from the same process
    heard: trio.Event = field(default_factory=trio.Event)

    @property
    def silent(self) -> bool:
        """Whether nothing has come that we have not looked at."""
        return not self.heard.is_set() and not readable(self.client.sock)


def identified(pid: int) -> ProcessId | None:
    """The CRIU of that pid; None for 0, one that cannot be seen."""
    try:
        return proc.identify(pid) if pid else None
    except ProcessLookupError:
        raise RemoteProtocolError(f"criu (pid {pid}) has ended already") from None


def dumped_by(criu: int) -> list[ProcessId]:
    """The tasks that this CRIU has frozen; if none is seen, the root that its command line tells. Blocking."""
    found = proc.traced_by(criu)
    try:
        return found or [proc.identify(int(values_of(proc.command_line(criu), "tree")[-1]))]
    except (ProcessLookupError, ValueError, IndexError):
        return []


def are_gone(tasks: list[ProcessId]) -> bool:
    """Whether the tasks that were dumped have been ended; taken for granted if none is known. Blocking."""
    try:
        proc.wait_doomed(tasks, KILL_TIMEOUT)
    except TimeoutError:
        return False
    return True
