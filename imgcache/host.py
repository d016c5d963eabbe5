"""Around one session: its directory, its serve socket, the restore that it asks for, questions to its CRIU.

All of it lives in one nursery and is gone, directory included, when the session is over.
"""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from imgcache.registry import Registry
from imgcache.requests import Requests
from imgcache.restore import restore_when_asked
from imgcache.serve.attempt import claim
from imgcache.serve.remote import SOCKET as REMOTE_SOCKET
from imgcache.serve.remote import RemoteRestores
from imgcache.serve.stream import serve_restore
from imgcache.session import Session
from imgnode.criu import Criu, CriuError
from imgnode.nursery import flat_nursery
from imgnode.unix import allowed, listening, peer_credentials
from imgwire.errors import UsageError
from imgwire.messages import Reply

SERVE_SOCKET = "streamer-serve.sock"

_log = structlog.get_logger()


@dataclass(frozen=True)
class HostConfig:
    """What an operator chose for all sessions."""

    criu: str = "criu"
    allow_restore: bool = False
    release_as_read: bool = False
    #: Seconds for which a source may be away before a session that is not in doubt is aborted.
    source_timeout: float = 60.0
    remote: bool = False  #: serve the original `criu restore --remote`, too
    action_script: Path | None = None  #: of the operator's, for restores


class Host:
    """Runs sessions and takes `criu restore` connections to them."""

    def __init__(self, registry: Registry, requests: Requests, config: HostConfig) -> None:
        self._registry, self._requests, self._config = registry, requests, config
        self._remote = RemoteRestores(registry)

    async def run(self, session: Session, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Live with the session until it is over; `started` when its serve socket listens."""
        directory = session.directory
        _make(directory, revived=session.revived)
        try:
            async with flat_nursery() as nursery:
                await nursery.start(self.take_restores, directory, session.name)
                nursery.start_soon(self._answer_cpu_questions, session)
                nursery.start_soon(self._restore, session)
                task_status.started()
                await session.run(self._config.source_timeout)
                nursery.cancel_scope.cancel()
        finally:
            session.forget()
            self._registry.forget_old()
            self._clear(session)

    async def take_restores(
        self,
        directory: Path,
        name: str | None,
        linked: Sequence[Path] = (),
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen in `directory` for `criu restore`; each gets the session of that name, or the next free one.

        With --remote it is found in the directories `linked`, too.
        """
        async with listening(directory / SERVE_SOCKET) as listener, flat_nursery() as nursery:
            if self._config.remote:
                await nursery.start(self._remote.take, directory / REMOTE_SOCKET, name, linked)
            task_status.started()
            while True:
                sock, _ = await listener.accept()
                nursery.start_soon(self._take, sock, name)

    async def _take(self, sock: trio.socket.SocketType, name: str | None) -> None:
        with sock:
            peer = peer_credentials(sock)
            if not allowed(peer):
                _log.warning("a process of another user asked for images", uid=peer.uid)
                return
            session = await claim(self._registry, peer.pid, name)
            if session is None:
                return
            hooked = self._requests.is_hooked(peer.pid)
            try:
                await serve_restore(
                    sock, session, criu=peer.pid, hooked=hooked, release_as_read=self._config.release_as_read
                )
            except OSError as error:
                _log.error("criu restore could not be served", session=session.name, error=str(error))
            finally:
                self._registry.release(session)

    async def _restore(self, session: Session) -> None:
        config = self._config
        await restore_when_asked(session, config.criu, allowed=config.allow_restore, script=config.action_script)

    async def _answer_cpu_questions(self, session: Session) -> None:
        while True:
            await session.changes.wait_until(lambda: bool(session.cpu_requests))
            question = session.cpu_requests.popleft()
            session.source.say(Reply(question.request, error=await self._check_cpu(question.cpuinfo)))

    async def _check_cpu(self, cpuinfo: bytes) -> str:
        with tempfile.TemporaryDirectory(prefix="imgcache-cpu-") as directory:
            await (trio.Path(directory) / "cpuinfo.img").write_bytes(cpuinfo)
            try:
                return await Criu(self._config.criu).cpuinfo_check(Path(directory)) or ""
            except (CriuError, UsageError) as error:
                return str(error)

    def _clear(self, session: Session) -> None:
        """Remove the session's directory; the log of a restore that failed is kept beside it."""
        log = session.directory / "restore.log"
        if session.failures and log.exists():
            log.rename(session.directory.with_suffix(".restore.log"))
        shutil.rmtree(session.directory, ignore_errors=True)


def _make(directory: Path, *, revived: bool) -> None:
    """The session's directory. What is there already is somebody else's, unless a cache before us left it."""
    try:
        directory.mkdir(mode=0o700, exist_ok=revived)
    except OSError as error:
        raise UsageError(f"{directory}: {error.strerror}; choose another name with --session") from error
