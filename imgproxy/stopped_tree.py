"""The point of no return of a lazy hand-over: the tree is stopped here, whole, and killed when it is needed no more.

    held by criu -> journalled, SIGSTOP pending -> commit -> runs there, lacks memory -> has it all -> killed here

As long as the process may die there of memory that it lacks, this is the copy that is left. CRIU resumes the tree when
it ends, whatever ends it. Before the commit that is right, it runs on. After it it must not: so right before the commit
every process gets a SIGSTOP, which stays pending as long as CRIU holds them and stops them, whole, when it does not.
"""

from collections.abc import Awaitable, Callable

import structlog
import trio

from imgnode import proc
from imgnode.journal import Journal
from imgnode.nursery import flat_nursery
from imgnode.proc import ProcessId
from imgproxy.handover import Decision, Handover
from imgproxy.hook import KILL_TIMEOUT, STOPPED
from imgproxy.source import CacheView
from imgwire.states import SessionState

#: The destination needs the source no more, or cannot be helped by it.
SETTLED = (SessionState.RUNNING, SessionState.LOST)

_log = structlog.get_logger()


class NotHeld(Exception):
    """CRIU has let the tasks go: they run on here."""


class StoppedTree:
    """The tree of one session. `resolve` asks a cache that has been restarted what became of it."""

    def __init__(
        self, view: CacheView, handover: Handover, journal: Journal, resolve: Callable[[], Awaitable[str]]
    ) -> None:
        self._view, self._handover, self._journal, self._resolve = view, handover, journal, resolve
        self.tasks: list[ProcessId] = []  #: once stopped

    async def hand_over(self, init: int, *, kept: bool) -> None:
        """Once the process under `init` is restored there: stop it, commit, and end it when it is needed no more.
        `kept`: the destination has all its memory. Aborted if it cannot be stopped."""
        async with flat_nursery() as nursery:
            nursery.start_soon(self._end_when_aborted, nursery.cancel_scope)
            if await self._handover.restored_there() and await self._commit(init, kept):
                await self._until_settled()
                if self._view.state is SessionState.RUNNING:
                    await trio.to_thread.run_sync(self._end)
            nursery.cancel_scope.cancel()

    async def _end_when_aborted(self, scope: trio.CancelScope) -> None:
        await self._handover.changes.wait_until(lambda: self._handover.decision is Decision.ABORTED)
        scope.cancel()

    async def _commit(self, init: int, kept: bool) -> bool:
        """The point of no return."""
        with trio.CancelScope(shield=True):  # what was stopped is committed or goes on
            try:
                await trio.to_thread.run_sync(self._stop, init, kept)
            except (NotHeld, OSError) as error:
                self._handover.abort(str(error))
                return False
            if self._handover.decision is not Decision.WAITING:  # aborted while the thread worked
                await trio.to_thread.run_sync(self._let_go, self._handover.reason)
                return False
            self._handover.commit()
        return True

    def _stop(self, init: int, kept: bool) -> None:
        """See that no task of the tree can run again, whoever dies. Blocking."""
        tree = proc.tree(init)
        criu = proc.tracer(init)
        _check_held(tree, criu)
        self._journal.write(STOPPED, tree=[list(task) for task in tree], kept=kept)
        self.tasks = tree
        try:
            proc.stop_tree(tree)
            _check_held(tree, criu)
        except (NotHeld, OSError) as error:
            self._let_go(str(error))
            raise

    def _let_go(self, reason: str) -> None:
        """It was stopped, and is not to be: it runs on here. Blocking."""
        self._journal.write("aborted", reason=reason)
        proc.continue_tree(self.tasks)

    async def _until_settled(self) -> None:
        """Wait until the destination needs us no more; ask for as long as it takes."""
        view = self._view
        await view.changes.wait_until(lambda: view.state in SETTLED or bool(view.lost))
        if view.state not in SETTLED:
            _log.warning("the cache has lost the session: asking what became of it", reason=view.lost)
            view.learn(SessionState(await self._resolve()), "")
        if view.state is SessionState.LOST:
            _log.error("the process died there before its memory was over; it is whole here, and stopped")

    def _end(self) -> None:
        proc.kill_tree(self.tasks)
        proc.wait_doomed(self.tasks, KILL_TIMEOUT)
        try:
            self._journal.write("committed")
        except OSError as error:  # `stopped` and the dead tree say the same
            _log.error("not written down", state="committed", error=str(error))


def _check_held(tree: list[ProcessId], criu: int) -> None:
    if not criu or not all(proc.tracer(task.pid) == criu for task in tree):
        raise NotHeld("criu has let the tasks go: they run on here")
