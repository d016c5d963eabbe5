"""What can be asked on the cache's control socket: by the action script, and by `imgcache status` and the like."""

from collections.abc import Awaitable, Callable
from pathlib import Path

from imgcache.registry import Registry
from imgcache.serve.extract import extract
from imgcache.serve.lazy_pages import GuardGone
from imgcache.session import Attempt, Session
from imgnode import proc
from imgnode.control import Say
from imgnode.control_client import Request
from imgnode.nursery import flat_nursery
from imgnode.proc import ProcessId
from imgwire.errors import UsageError
from imgwire.states import SessionState

Gone = Callable[[], Awaitable[None]]


class Requests:
    """Answers requests about the sessions of `registry`."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._hooked: set[ProcessId] = set()

    def is_hooked(self, criu: int) -> bool:
        """Whether that `criu restore` runs with our action script."""
        self._hooked = {process for process in self._hooked if proc.is_alive(process)}
        return any(process.pid == criu for process in self._hooked)

    async def handle(self, request: Request, say: Say, gone: Gone) -> None:
        """Answer one request."""
        try:
            match request.get("op"):
                case "restore-begins":
                    self._hooked.add(proc.identify(int(request["criu"])))
                    await say({"ok": True})
                case "restored":
                    await self._restored(request, say, gone)
                case "running":
                    session = self._restoring(request)
                    if session is not None:
                        session.running(float(request["age"]))
                    await say({"ok": session is not None})
                case "status":
                    for session in self._registry:
                        await say(describe(session))
                case "extract":
                    await self._extract(request, say)
                case "drop":
                    self._drop(request)
                    await say({"ok": True})
                case other:
                    raise UsageError(f"request {other!r} is not known to this imgcache")
        except GuardGone as error:
            await say({"decision": "stop", "reason": str(error)})
        except (UsageError, OSError, KeyError, TypeError, ValueError) as error:
            await say({"ok": False, "error": str(error)})

    def _restoring(self, request: Request) -> Session | None:
        """The session that this `criu restore` restores."""
        for session in self._registry:
            if session.attempt is not None and session.attempt.criu == request["criu"]:
                return session
        known: Session | None = self._registry.get(str(request.get("session")))
        if known is not None and known.revived:
            known.attempt = Attempt(int(request["criu"]), hooked=True, init=int(request["init"]))
            return known
        return None

    async def _restored(self, request: Request, say: Say, gone: Gone) -> None:
        session = self._restoring(request)
        if session is None:
            await say({"decision": "stop", "reason": "the session is over: the process runs on at the source"})
            return
        attempt = session.attempt
        if session.guard is not None:
            await session.guard(int(request["init"]))
        session.restored(int(request["init"]))
        await say({"session": session.identity})
        async with flat_nursery() as nursery:

            async def hang_up() -> None:
                await gone()
                nursery.cancel_scope.cancel()

            nursery.start_soon(hang_up)
            await session.changes.wait_until(
                lambda: session.over or session.state is SessionState.COMMITTED or session.attempt is not attempt
            )
            runs = session.attempt is attempt and session.state in (SessionState.COMMITTED, SessionState.RUNNING)
            session.released |= runs
            await say({"decision": "run"} if runs else {"decision": "stop", "reason": session.reason})
            nursery.cancel_scope.cancel()

    async def _extract(self, request: Request, say: Say) -> None:
        session = self._find(request)
        written = await extract(session, Path(request["directory"]))
        await say({"ok": True, "images": written, "bytes": session.store.size})

    def _drop(self, request: Request) -> None:
        session = self._find(request)
        needed = session.in_doubt or session.state in (SessionState.COMMITTED, SessionState.FOLLOWING)
        if needed and not request.get("force"):
            raise UsageError(
                f"session {session.name} is {session.state}: its source may have given the process up already, and "
                "these may be its only images; wait for the source, or drop it with --force"
            )
        session.drop("dropped by the operator")

    def _find(self, request: Request) -> Session:
        session = self._registry.named(str(request["session"]))
        if session is None:
            raise UsageError(f"no session {request['session']!r} here; `imgcache status` lists them")
        return session


def describe(session: Session) -> Request:
    """A session for `imgcache status`; sizes in bytes."""
    arena = session.store.arena
    return {
        "session": session.identity,
        "name": session.name,
        "state": session.state.value,
        "reason": session.reason,
        "images": len(session.store),
        "bytes": session.store.size,
        "memory": arena.memory_bytes,
        "spool": arena.spool_bytes,
        "source": "attached" if session.source.attached else "away",
        "restore": session.attempt.criu if session.attempt else None,
        "follows": session.memory.total - session.memory.here if session.memory else 0,
    }
