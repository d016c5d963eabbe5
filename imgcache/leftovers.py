"""What a `criu restore` leaves behind when it dies: tasks that are half restored, or restored and stuck.

A killed CRIU cannot clean up. Its children wait in CRIU's restorer code for a word that never comes. They are known by
the socket to us, which they inherited and close last, and by having been CRIU's children while it lived: noted when
they fetch their pages, and told by the action script. Whether a task runs is
seen at its program counter: inside a mapping of the dumped process it runs, in a mapping that the dump does not have
(the restorer's) it is stuck. Source of the stages: CRIU's restore, tried by killing it at each.
"""

import os
import re
import select
import time
from collections.abc import Iterable
from pathlib import Path

import structlog
import trio

from imgcache.session import Session
from imgnode import proc
from imgnode.proc import PROC, ProcessId

_log = structlog.get_logger()

#: Seconds for the tasks of a killed CRIU to come to rest.
SETTLING = 1.0

_NAMESPACE_PID = re.compile(r"^NSpid:.*\t(\d+)$", re.MULTILINE)


class Leftovers:
    """What to look for after one `criu restore`. Made while it is still alone: before it has forked."""

    #: Seconds for a CRIU that was told no, or lost its images, to kill its tasks by itself.
    PATIENCE = 5.0

    def __init__(self, criu: ProcessId | None, sockets: set[int]) -> None:
        self._criu = criu
        self._sockets = sockets
        self._tasks: set[ProcessId] = set()

    @classmethod
    async def watch(cls, pid: int) -> "Leftovers":
        """Note who CRIU is and which sockets are its own. `pid` 0: it cannot be seen, nothing can be cleared."""
        if not pid:
            return cls(None, set())
        try:
            criu = proc.identify(pid)
        except ProcessLookupError:
            return cls(None, set())
        return cls(criu, await trio.to_thread.run_sync(proc.own_socket_inodes, pid))

    def note_children(self) -> None:
        """Note who CRIU's children are now: the root of the restored tree, once its tasks read their pages."""
        if self._criu is not None:
            self._tasks.update(proc.children(self._criu))

    async def note_trees(self, init: int) -> None:
        """Note every task. At CRIU's death, before a pipe of theirs is closed: one that finds that ends, and leaves
        children behind that cannot be known any more."""
        self._tasks.update(_identified(init))
        self._tasks.update(await trio.to_thread.run_sync(self._alive))

    async def runs(self, session: Session, init: int) -> bool:
        """Whether the restored process (root `init`; 0: as the images say) executes its own instructions."""
        root = init or _root_in_images(session)
        return await trio.to_thread.run_sync(_runs, session, root)

    async def clear(self, init: int) -> None:
        """Kill CRIU, if it still lives, and every task of its restore, and see them dead."""
        self._tasks.update(_identified(init))
        await trio.to_thread.run_sync(self._clear)

    def _alive(self) -> list[ProcessId]:
        return _trees([*([self._criu] if self._criu else []), *self._tasks, *_holders(self._sockets)])

    def _clear(self) -> None:
        # A task may fork while we look: its child is an orphan then, and holds the socket still.
        while found := self._alive():
            proc.kill_tree(found)
            try:
                proc.wait_dead(found, self.PATIENCE)
            except TimeoutError as error:
                _log.error("a task of a failed restore cannot be killed", error=str(error))
                return


def _identified(*pids: int) -> list[ProcessId]:
    """Who has these pids now; 0 is nobody."""
    found: list[ProcessId] = []
    for pid in filter(None, pids):
        try:
            found.append(proc.identify(pid))
        except ProcessLookupError:  # it ended by itself
            continue
    return found


def _holders(sockets: set[int]) -> list[ProcessId]:
    return _identified(*(pid for pid in proc.socket_holders(sockets) if pid != os.getpid()))


def _trees(roots: Iterable[ProcessId]) -> list[ProcessId]:
    """Those of `roots` that live, and all below them that do."""
    found: list[ProcessId] = []
    for root in filter(proc.is_alive, roots):
        try:
            found += filter(proc.is_alive, proc.tree(root.pid))
        except ProcessLookupError:
            continue
    return found


def _root_in_images(session: Session) -> int:
    from transform.images.codec import decode  # needed once in a while, and slow to import
    from transform.images.proto import task_pb2

    image = session.store.find("pstree.img")
    if image is None:
        return 0
    tasks = decode("pstree.img", image.read(0, image.size)).messages(task_pb2.PstreeEntry)
    return tasks[0].pid if tasks else 0


def _runs(session: Session, root: int) -> bool:
    """Whether every task of the tree that lives executes its own instructions; at least its root."""
    try:
        if not root:
            return False
        first, *others = proc.tree(root)
        return _task_runs(session, first) and all(_task_runs(session, one) or not proc.is_alive(one) for one in others)
    except ProcessLookupError:
        return False


def _task_runs(session: Session, task: ProcessId) -> bool:
    """Whether one task does. One that is on a CPU shows no program counter: it is looked at again, until it waits.

    CRIU's restorer does not compute, it waits; who is still on a CPU after SETTLING seconds is in its own program.
    """
    pause, end = select.poll(), time.monotonic() + SETTLING
    stuck = False
    while time.monotonic() < end:
        if not proc.is_alive(task):
            return False
        try:
            status = Path(PROC, str(task.pid), "status").read_text()
            where = Path(PROC, str(task.pid), "syscall").read_text().split()
        except (ProcessLookupError, FileNotFoundError):
            return False
        inside = _NAMESPACE_PID.search(status)
        if where[0] != "running":
            if _is_mapped(session, int(inside[1]) if inside else task.pid, int(where[-1], 16)):
                return True
            stuck = True
        pause.poll(10)
    return not stuck and proc.is_alive(task)


def _is_mapped(session: Session, pid: int, address: int) -> bool:
    """Whether the dumped process had a mapping at `address`. One that was not dumped was forked since: it runs."""
    from transform.images.codec import scan
    from transform.images.proto import memory_pb2

    name = f"mm-{pid}.img"
    image = session.store.find(name)
    if image is None:
        return True
    for mm in scan(name, image.read(0, image.size), memory_pb2.Mm):
        return any(vma.start <= address < vma.end for vma in mm.vmas)
    return False
