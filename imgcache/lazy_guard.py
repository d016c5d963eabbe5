"""Post-copy: runs `criu lazy-pages`, and ends the restored process if that dies before the memory is there.

`criu lazy-pages` holds a userfaultfd for each process. When the last descriptor of one is closed, pages that have not
come read as zeroes: a process must never run on after that. So this program, its parent, holds a second one of each,
and kills the tree if criu lazy-pages ends badly, as it does when the cache dies, or if the cache lets go of it. What
became of it goes to the cache, or, if that is gone, into its journal. Standard library only.

Lines, in: `start`, `guard PID` (root of the restored tree). Out: `ready`, `guarded`, `over` (all memory is there), or
`failed REASON`, with the tree dead.
"""

import ctypes
import os
import select
import signal
import sys

from imgnode import proc
from imgnode.journal import Journal
from imgnode.proc import ProcessId

#: Milliseconds between two looks at a fault that nobody has taken: nobody tells that criu lazy-pages, done with one
#: process, has closed its descriptor. As long as we hold ours the process waits for an answer.
LOOK = 10
#: Seconds for killed tasks to stop. It takes milliseconds.
KILL_TIMEOUT = 10.0

_PIDFD_GETFD, _KCMP = 438, {"x86_64": 312, "aarch64": 272}.get(os.uname().machine, 0)
_UFFD = "anon_inode:[userfaultfd]"
_libc = ctypes.CDLL(None, use_errno=True)


class Guard:
    """The whole program."""

    def __init__(self, criu: str, directory: str, pages: int, journal: Journal) -> None:
        self._criu, self._directory, self._pages, self._journal = criu, directory, pages, journal
        self._child = 0
        self._death = -1
        self._status = -1
        self._init = 0
        self._tree: set[ProcessId] = set()
        self._held: dict[int, int] = {}  # descriptor of criu's: ours for the same userfaultfd
        self._input = b""
        self._cache_is_there = True

    def run(self) -> int:
        """Until the memory is there, or the tree is dead."""
        while True:
            ready = self._wait()
            if self._death in ready:
                return self._criu_ended()
            if self._status in ready:
                self._criu_ready()
            if 0 in ready and not self._command():
                self._cache_is_there = False
                return self._give_up("the cache let go")
            if ready & set(self._held.values()):
                self._look_after_faults()

    def _wait(self) -> set[int]:
        """What can be read now. A fault that waits is looked at now and then; nothing else is."""
        poll = select.poll()
        for fd in (0, self._death, self._status, *self._held.values()):
            if fd >= 0:
                poll.register(fd, select.POLLIN)
        ready = {fd for fd, _ in poll.poll()}
        if ready <= set(self._held.values()):
            others = select.poll()
            for fd in (0, self._death, self._status):
                if fd >= 0:
                    others.register(fd, select.POLLIN)
            ready |= {fd for fd, _ in others.poll(LOOK)}
        return ready

    def _command(self) -> bool:
        """Obey the cache; False if it is gone."""
        data = os.read(0, 4096)
        self._input += data
        while b"\n" in self._input:
            line, _, self._input = self._input.partition(b"\n")
            word, _, rest = line.decode().partition(" ")
            if word == "start":
                self._start()
            if word == "guard":
                self._guard(int(rest))
        return bool(data)

    def _start(self) -> None:
        """Start criu lazy-pages."""
        self._status, told = os.pipe()
        os.set_inheritable(told, True)
        os.set_inheritable(self._pages, True)
        words = [self._criu, "lazy-pages", "-D", self._directory, "-o", "lazy-pages.log", "--page-server"]
        words += ["--ps-socket", str(self._pages), "--status-fd", str(told)]
        nowhere = os.open(os.devnull, os.O_RDWR)
        actions = [(os.POSIX_SPAWN_DUP2, nowhere, fd) for fd in range(3)]
        self._child = os.posix_spawnp(self._criu, words, os.environ, file_actions=actions)
        self._death = os.pidfd_open(self._child)
        for fd in (told, self._pages, nowhere):
            os.close(fd)

    def _criu_ready(self) -> None:
        if os.read(self._status, 1):
            self._say("ready")
        os.close(self._status)
        self._status = -1

    def _guard(self, init: int) -> None:
        """All is restored and nothing has run: from now on whatever happens, it must not run without its memory."""
        self._init = init
        self._take_descriptors()
        self._note_tree()
        self._say("guarded")

    def _note_tree(self) -> None:
        for root in (self._init, *(task.pid for task in self._tree)):
            try:
                self._tree.update(proc.tree(root))
            except ProcessLookupError:
                continue

    def _take_descriptors(self) -> None:
        place = f"/proc/{self._child}/fd"
        for name in os.listdir(place):
            fd = int(name)
            try:
                if fd in self._held or os.readlink(f"{place}/{name}") != _UFFD:
                    continue
            except FileNotFoundError:
                continue
            ours = _libc.syscall(_PIDFD_GETFD, self._death, fd, 0)
            if ours >= 0:
                self._held[fd] = ours

    def _look_after_faults(self) -> None:
        """Somebody waits for a page, or has forked: let go of what criu has let go of, take what it has got anew."""
        for fd, ours in list(self._held.items()):
            if not self._criu_holds(fd, ours):
                os.close(self._held.pop(fd))
        if not self._criu_is_dead():
            self._take_descriptors()
            self._note_tree()

    def _criu_holds(self, fd: int, ours: int) -> bool:
        """Whether that is criu's still. While criu is dying nothing is let go: then the tree must die first."""
        same = _libc.syscall(_KCMP, os.getpid(), self._child, 0, ours, fd) == 0
        return same or self._criu_is_dead()

    def _criu_is_dead(self) -> bool:
        return proc.is_dying(self._child)

    def _criu_ended(self) -> int:
        _, status = os.waitpid(self._child, 0)
        code = os.waitstatus_to_exitcode(status)
        self._child = 0
        if code != 0:
            return self._give_up(f"criu lazy-pages ended with exit code {code}")
        self._say("over")
        return 0

    def _give_up(self, reason: str) -> int:
        """Kill the tree, while its faults still wait, and then criu."""
        for _ in range(2 if self._init else 0):  # what forks meanwhile is found the second time
            self._note_tree()
            proc.kill_tree(self._tree)
            proc.wait_doomed(self._tree, KILL_TIMEOUT)
        if self._child:
            os.kill(self._child, signal.SIGKILL)
            os.waitpid(self._child, 0)
        self._say(f"failed {reason}")
        return 1

    def _say(self, line: str) -> None:
        """To the cache; if that is gone, a session that was committed is noted as it ends."""
        try:
            if self._cache_is_there:
                os.write(1, line.encode() + b"\n")
                return
        except BrokenPipeError:
            self._cache_is_there = False
        state = {"over": "running", "failed": "lost"}.get(line.partition(" ")[0])
        if state and self._journal.state in ("committed", "following"):
            self._journal.write(state, detail=line)


def main() -> int:
    """`-m imgcache.lazy_guard CRIU DIRECTORY PAGES JOURNAL SESSION`; PAGES is the descriptor for its page server."""
    criu, directory, pages, journal, session = sys.argv[1:]
    return Guard(criu, directory, int(pages), Journal(journal, session)).run()


if __name__ == "__main__":
    sys.exit(main())
