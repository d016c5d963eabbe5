"""Hand-over, the source's part: when may the frozen tree be killed, and what became of it.

    waiting --(cache holds all; restored, if wanted)--> deciding --(hook has killed the tree)--> committed
       |                                                   |
       +------(anything else)------> aborted <-------------+ (hook died before it was written down that it kills)

The proxy gives its word ("kill") once and then only watches: the hook writes the journal, stops the tree and kills it.
If the hook dies in between, the journal tells how far it was, and the tree stands still until that has been read.
"""

import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum

import structlog
import trio

from imgnode import proc
from imgnode.control import Say
from imgnode.control_client import Request
from imgnode.criu_orphans import Known, known
from imgnode.journal import Journal
from imgnode.nursery import flat_nursery
from imgnode.proc import ProcessId
from imgnode.signalling import Changes
from imgproxy.hook import DECIDING, KILL_TIMEOUT, KILLING
from imgproxy.source import CacheView, LinkLost, SessionAborted
from imgwire.errors import RemoteProtocolError
from imgwire.states import AFTER_COMMIT, SessionState
from transform.errors import TransformError

#: What makes a hand-over fail without anything being wrong in this program.
FAILURES = (LinkLost, SessionAborted, RemoteProtocolError, TransformError, OSError)

#: Seconds for which the action script of a dead tree stays, until the cache has heard of the commit.
HOOK_GUARD = 60.0

_log = structlog.get_logger()


class WaitFor(StrEnum):
    """What the source waits for before it gives the process up."""

    COMPLETE = "complete"  #: the cache holds every byte
    RESTORED = "restored"  #: everything is restored at the destination and waits for the commit
    AUTO = "auto"  #: restored if a `criu restore` with our action script is there, else complete


class Decision(StrEnum):
    """Where a hand-over is."""

    WAITING = "waiting"
    DECIDING = "deciding"
    COMMITTED = "committed"
    ABORTED = "aborted"


class RestoreFailed(Exception):
    """The restore at the destination failed; the text is CRIU's reason there."""


@dataclass(frozen=True)
class HandoverPolicy:
    """What the user chose."""

    wait_for: WaitFor = WaitFor.AUTO
    timeout: float = 300.0  #: seconds that the tasks may stay frozen for the hand-over
    one_attempt: bool = False  #: a failed restore ends it (migrate); else another may be started
    lazy: bool = False  #: the process runs there before its memory is in place: the tree is killed when that is
    follows: bool = False  #: ... and that memory is no part of the images: CRIU serves it, the tree frozen
    kills: bool = True  #: the hook kills the tree; False: the images are only kept, CRIU does as it was told


class Handover:
    """The hand-over of one dump."""

    def __init__(
        self, journal: Journal, view: CacheView, policy: HandoverPolicy, finish_images: Callable[[], Awaitable[None]]
    ) -> None:
        self.decision = Decision.WAITING
        self.reason = ""
        self.changes = Changes()
        self.times: dict[str, float] = {}
        self.serving = False  #: lazy: the tree may be stopped, and CRIU serves what follows
        self._journal, self._view, self._policy = journal, view, policy
        self._finish_images = finish_images
        self.announced: list[Known] = []  #: every CRIU that was started with our action script

    def is_announced(self, criu: int) -> bool:
        """Whether that CRIU runs with our action script, or has died since it said so."""
        return any(one.process.pid == criu and not _is_another(one.process) for one in self.announced)

    async def handle(self, request: Request, say: Say, gone: Callable[[], Awaitable[None]]) -> None:
        """Answer the action script."""
        match request.get("op"):
            case "dump-begins":
                self.announced.append(known(int(request["criu"])))
                self.changes.notify()
                await say({"ok": True})
            case "post-dump":
                await say({"session": self._journal.session, "journal": self._journal.directory})
                await self._post_dump(say, gone)
            case "killed":
                self.commit()
                await self._until_cache_knows()
                await say({"ok": True})
            case other:
                await say({"ok": False, "error": f"request {other!r} is not known to this imgproxy"})

    def commit(self) -> None:
        """The tree is dead."""
        self._set(Decision.COMMITTED)

    def abort(self, reason: str) -> None:
        """The process stays here, unless that is decided already. Written down before anybody acts on it."""
        if self.decision is Decision.WAITING:
            try:
                self._journal.write("aborted", reason=reason)
            except OSError as error:  # `opened` stands there: whoever reads that aborts
                _log.error("not written down", state="aborted", error=str(error))
            self.reason = reason
            self._set(Decision.ABORTED)

    async def prepare(self) -> None:
        """Bring the destination to where the process may be killed here. FAILURES, RestoreFailed, TooSlowError."""
        with trio.fail_after(self._policy.timeout):
            await self._finish_images()
            self.times["images-sent"] = trio.current_time()
            await self._view.wait_for(lambda: self._view.state is not SessionState.RECEIVING)
            if not self._policy.lazy and self._waits_for_restored():
                await self._wait_restored()

    async def restored_there(self) -> bool:
        """Post-copy, with the images there: wait until all is restored and waits for the commit; False: aborted."""
        try:
            with trio.fail_after(self._policy.timeout):
                await self._wait_restored()
        except trio.TooSlowError:
            self.abort(self._too_slow())
        except (RestoreFailed, *FAILURES) as error:
            self.abort(str(error))
        return self.decision is Decision.WAITING

    def _waits_for_restored(self) -> bool:
        there = self._view.detail
        if self._policy.wait_for is WaitFor.RESTORED and there == "unhooked":
            raise RestoreFailed("the criu restore there runs without --action-script imgcache-hook")
        return self._policy.wait_for is WaitFor.RESTORED or (
            self._policy.wait_for is WaitFor.AUTO and there == "hooked"
        )

    async def _wait_restored(self) -> None:
        failures = self._view.restore_failures

        def settled() -> bool:
            return self._view.state is SessionState.RESTORED or (self._policy.one_attempt and bool(failures))

        await self._view.wait_for(settled)
        if self._view.state is not SessionState.RESTORED:
            raise RestoreFailed(failures[-1])

    async def _post_dump(self, say: Say, gone: Callable[[], Awaitable[None]]) -> None:
        self.times["post-dump"] = trio.current_time()
        if not await self._prepared(gone):
            await say({"decision": "stop", "reason": self.reason})
            return
        if self._policy.lazy:
            await say({"decision": "serve", "proxy": os.getpid()})
            if self._policy.follows:
                self._serve()
            return
        if not self._policy.kills:
            self.commit()
            await say({"decision": "done"})
            return
        self._set(Decision.DECIDING)
        with trio.CancelScope(shield=True):  # the word is given: it takes the hook milliseconds to act on it
            try:
                await say({"decision": "kill"})
                await gone()
            finally:
                await self._settle()

    async def _settle(self) -> None:
        """The hook has ended. If it has not said what it did, the journal and the tree tell."""
        if self.decision is not Decision.DECIDING:
            return
        if await trio.to_thread.run_sync(outcome, self._journal):
            self.commit()
        else:
            self.reason = "the action script died before it killed the tree"
            self._set(Decision.ABORTED)

    async def _prepared(self, gone: Callable[[], Awaitable[None]]) -> bool:
        """Whether all is ready; False, with the reason written down, if not or if the hook hangs up."""
        async with flat_nursery() as nursery:

            async def hung_up() -> None:
                await gone()
                self.abort("criu dump was ended while it waited for the destination")
                nursery.cancel_scope.cancel()

            nursery.start_soon(hung_up)
            try:
                await self.prepare()
            except trio.TooSlowError:
                self.abort(self._too_slow())
            except (RestoreFailed, *FAILURES) as error:
                self.abort(str(error))
            if self._holds and self.decision is Decision.WAITING:
                self._serve()
                await self.changes.wait_until(lambda: self.decision is not Decision.WAITING)
            nursery.cancel_scope.cancel()
        return self.decision is not Decision.ABORTED

    @property
    def _holds(self) -> bool:
        """Whether CRIU waits in its action script until the tree is stopped: there is nothing for it to serve."""
        return self._policy.lazy and not self._policy.follows

    def _serve(self) -> None:
        self.serving = True
        self.changes.notify()

    async def _until_cache_knows(self) -> None:
        """While the hook waits it watches over us: if we die now, it starts a recovery in our place."""
        with trio.move_on_after(HOOK_GUARD):
            await self._view.changes.wait_until(lambda: self._view.state in AFTER_COMMIT)

    def _too_slow(self) -> str:
        wanted = "hold all images" if self._view.state is SessionState.RECEIVING else "restore the process"
        return f"the destination did not {wanted} within {self._policy.timeout:.0f} s (--timeout)"

    def _set(self, decision: Decision) -> None:
        self.decision = decision
        self.times[decision] = trio.current_time()
        self.changes.notify()


def _is_another(process: ProcessId) -> bool:
    """Whether somebody else has its pid now."""
    try:
        return proc.identify(process.pid) != process
    except ProcessLookupError:
        return False


def outcome(journal: Journal) -> bool:
    """Whether a session of the journal was committed. Decides, and writes it down, if a crash left it open.

    Before it was written down that the tree is killed it was stopped at most, and goes on; after it the rest must
    follow. A task that died by itself while all were stopped gives the process up, too. Blocking; TimeoutError if the
    action script is still at it.
    """
    if journal.state in (DECIDING, KILLING) and (hook := journal.fact("hook")):  # an older imgproxy's has none
        proc.wait_dead([ProcessId(*hook)], KILL_TIMEOUT)
    state = journal.state
    if state in ("committed", "aborted"):
        return state == "committed"
    tree = [ProcessId(*task) for task in journal.fact("tree") or ()]
    if state == KILLING or not all(proc.is_alive(task) for task in tree):
        proc.kill_tree(tree)
        proc.wait_dead(tree, KILL_TIMEOUT)
        journal.write("committed", recovered=True)
        return True
    journal.write("aborted", reason="interrupted before the process was given up", recovered=True)
    proc.continue_tree(tree)
    return False
