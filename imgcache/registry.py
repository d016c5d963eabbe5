"""All sessions of a cache, by id, by name and by the `criu restore` that is to take them.

Each session has a directory with a serve socket of its own; the cache's images directory has one too, which takes the
oldest session that nobody restores yet. So one migration after the other needs no names, and many at once have them.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import structlog

from imgcache.arena import Arena, MemoryBudget
from imgcache.session import Session
from imgnode import proc
from imgnode.journal import Journal, journals
from imgnode.metrics import Metrics
from imgnode.proc import ProcessId
from imgnode.signalling import Changes
from imgwire.errors import UsageError
from imgwire.messages import Hello
from imgwire.names import check_session_name
from imgwire.states import SessionState

#: Sessions at once; each holds about six descriptors and a megabyte of pipe.
MAX_SESSIONS = 1000
#: Seconds for which the journal of a session that runs is kept.
REMEMBERED_FOR = 7 * 24 * 3600
#: Sessions that are over and still shown by `imgcache status`.
MAX_REMEMBERED = 100

#: Where a session may be whose process has begun to wait for memory.
_FOLLOWED = (SessionState.RESTORED, SessionState.COMMITTED, SessionState.FOLLOWING)

_log = structlog.get_logger()


class Registry:
    """See the module's text."""

    def __init__(
        self, directory: Path, journal: Path, spool: Path | None, memory_limit: int | None, metrics: Metrics
    ) -> None:
        self.metrics = metrics
        for state in SessionState:
            metrics.sessions.labels(state.value).set_function(partial(self._count, state))
        self.directory, self.journal, self.spool = directory, journal, spool
        self.budget = MemoryBudget(memory_limit)
        self.changes = Changes()
        self._sessions: dict[str, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(list(self._sessions.values()))

    def live(self) -> list[Session]:
        """The sessions that are not over, oldest first."""
        return [session for session in self if not session.over]

    def get(self, identity: str) -> Session | None:
        """The session of that id."""
        return self._sessions.get(identity)

    def named(self, name: str) -> Session | None:
        """The newest session of that name (or whose id begins with it)."""
        for session in reversed(list(self._sessions.values())):
            if session.name == name or (len(name) >= 8 and session.identity.startswith(name)):
                return session
        return None

    def create(self, hello: Hello) -> Session:
        """A new session, or UsageError with the reason for the proxy's user."""
        if hello.session in self._sessions:
            raise UsageError("the session is already open")
        if any(session.name == hello.name for session in self.live()):
            raise UsageError(f"a session named {hello.name} is under way there; choose another name with --session")
        if len(self.live()) >= MAX_SESSIONS:
            raise UsageError(f"the cache has {MAX_SESSIONS} sessions already")
        return self._add(
            Session(
                hello.session,
                hello.name,
                wait_restored=hello.wait_restored,
                directory=self.directory / hello.name,
                arena=Arena(self.budget, self.spool),
                journal=Journal(str(self.journal), hello.session),
                metrics=self.metrics,
            )
        )

    def revive(self) -> list[Session]:
        """After a restart: the sessions of the journal that may have a restored process waiting for a word."""
        revived = []
        for journal in journals(str(self.journal)):
            self._lose_what_followed(journal)
            state = journal.state
            if state not in (SessionState.RESTORED, SessionState.COMMITTED):
                self._clear(journal)
            if state in (SessionState.RESTORED, SessionState.COMMITTED):
                revived.append(self._add(self._from_journal(journal, SessionState(state))))
            elif state == SessionState.COMPLETE and not journal.fact("wait_restored"):
                _log.error(
                    "images of a session that may be committed were lost with the cache", session=journal.session
                )
            elif state in (SessionState.RUNNING, SessionState.LOST):
                self._remember(journal)
            elif state in (SessionState.RECEIVING, SessionState.COMPLETE, SessionState.ABORTED):
                journal.remove()  # what is not remembered was aborted
        return revived

    def _lose_what_followed(self, journal: Journal) -> None:
        """A cache that ended took the memory with it that a process waited for: that has been killed, or is now."""
        if journal.fact("follows") and journal.state in _FOLLOWED:
            tasks = [ProcessId(*task) for task in journal.fact("tree") or ()]
            for task in filter(proc.is_alive, tasks):
                proc.kill_tree(proc.tree(task.pid))
            journal.write(SessionState.LOST, detail="the cache was restarted")

    async def claim(self, name: str | None, fits: Callable[[Session], bool] = lambda _session: True) -> Session:
        """Wait for a session that fits and has that name (None: the oldest that nobody restores); take it."""
        while (session := self._free(name, fits)) is None:
            await self.changes.wait_until(lambda: self._free(name, fits) is not None)
        session.claimed = True
        return session

    def _free(self, name: str | None, fits: Callable[[Session], bool]) -> Session | None:
        for session in self.live():
            taken = session.claimed or session.attempt is not None or session.revived or not fits(session)
            if not taken and (session.name == name or (name is None and session.restore_options is None)):
                return session
        return None

    def release(self, session: Session) -> None:
        """The restore that had claimed it has ended."""
        session.claimed = False
        self.changes.notify()

    def discard(self, session: Session) -> None:
        """It could not be opened: as if it had never been."""
        del self._sessions[session.identity]
        session.discard()

    def forget_old(self) -> None:
        """Keep only the newest of the sessions that are over."""
        over = [session for session in self if session.over]
        for session in over[: max(0, len(over) - MAX_REMEMBERED)]:
            del self._sessions[session.identity]

    def _count(self, state: SessionState) -> float:
        return sum(session.state is state for session in self)

    def _add(self, session: Session) -> Session:
        self._sessions[session.identity] = session
        session.on_news = self.changes.notify
        self.changes.notify()
        return session

    def _clear(self, journal: Journal) -> None:
        """Remove the directory that a killed cache left of a session."""
        name = str(journal.fact("name"))
        if not any(session.name == name for session in self):
            shutil.rmtree(self.directory / check_session_name(name), ignore_errors=True)

    def _remember(self, journal: Journal) -> None:
        """The source may still ask how it ended; after a week it will not."""
        if time.time() - Path(journal.path).stat().st_mtime > REMEMBERED_FOR:
            journal.remove()

    def _from_journal(self, journal: Journal, state: SessionState) -> Session:
        name = str(journal.fact("name"))
        return Session(
            journal.session,
            name,
            wait_restored=True,
            directory=self.directory / name,
            arena=Arena(self.budget, None),
            journal=journal,
            metrics=self.metrics,
            revived=state,
        )
