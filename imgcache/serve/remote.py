"""The original `criu restore --remote` on its socket: a connection for each image that CRIU or one of its tasks reads.

    list of ids (waits for a complete session) -> images, of any round, as often as wanted -> finish

The list is the first thing that it asks for, and says who it is; all that comes later from it or its children is of
the same restore. It is answered once the session is complete, for a part of the list would end the restore. The id by
which CRIU asks is the directory that it was given with -D, word for word; a session whose images have no such ids
(they came by `--stream`) is offered under the one that this CRIU has.
"""

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path

import structlog
import trio

from imgcache.hook import SCRIPT
from imgcache.image import StoredImage
from imgcache.leftovers import Leftovers
from imgcache.registry import Registry
from imgcache.serve.attempt import attend, claim
from imgcache.serve.feed import feed_pipe
from imgcache.session import Session
from imgnode import proc
from imgnode.criu_options import values_of
from imgnode.nursery import flat_nursery
from imgnode.pipes import send_file
from imgnode.remote_client import RemoteClient
from imgnode.unix import allowed, linked, listening
from imgwire.errors import RemoteProtocolError
from imgwire.img_remote import Finish, Finished, ImageWanted, LocalEvent, SnapshotsWanted
from imgwire.names import image_kind, is_pages
from imgwire.states import SessionState

SOCKET = "img-cache.sock"

_log = structlog.get_logger()


class _Restore:
    """One `criu restore`: its session, and a nursery for its connections."""

    def __init__(self, criu: int, words: Sequence[str], session: Session) -> None:
        self.criu, self.session = criu, session
        self.hooked = any(Path(script).name == SCRIPT for script in values_of(words, "action-script"))
        self.finished = trio.Event()
        self._variant = session.store.variant
        self._named = _named(words)
        self._leftovers: Leftovers | None = None
        self._nursery: trio.Nursery | None = None

    @property
    def snapshots(self) -> list[str]:
        """The ids that it may ask for, oldest first."""
        return [one.snapshot for one in self.session.store.lineage if one.snapshot] or [self._named or "."]

    async def run(self, client: RemoteClient) -> None:
        """Answer the list, then serve until CRIU is through. `client` asked for the list."""
        await attend(
            self.session,
            criu=self.criu,
            hooked=self.hooked,
            serve=partial(self._serve, client),
            let_go=client.sock.close,
        )

    async def do(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do `work` as a part of the restore: it ends with it. What goes wrong in it is the caller's."""
        if self._nursery is None:
            raise RemoteProtocolError("the restore is over")
        failure: Exception | None = None
        done = trio.Event()

        async def run() -> None:
            nonlocal failure
            try:
                await work()
            except (RemoteProtocolError, OSError) as error:
                failure = error
            finally:
                done.set()

        self._nursery.start_soon(run)
        await done.wait()
        if failure is not None:
            raise failure

    async def _serve(self, client: RemoteClient, leftovers: Leftovers) -> None:
        session = self.session
        await session.changes.wait_until(lambda: session.servable)
        self._leftovers, self._variant = leftovers, session.store.variant
        with session.reading():
            async with flat_nursery() as nursery:
                self._nursery = nursery
                try:
                    await client.say_snapshots(self.snapshots)
                    client.sock.close()
                    await self.finished.wait()
                finally:
                    self._nursery = None  # before it closes, and whatever ends it
                nursery.cancel_scope.cancel()
        session.running()

    async def read(self, client: RemoteClient, name: str, snapshot: str) -> None:
        """Serve an image from its start."""
        image = self._find(name, snapshot)
        if image is None:
            await client.say_missing()
            return
        pipe = await client.target(self._variant)
        self._variant = "nopipe" if pipe is None else "pipe"
        try:
            if pipe is None:
                for piece in image.extents():
                    await send_file(piece.fd, piece.offset, piece.length, client.sock.fileno())
            else:
                await feed_pipe(image, pipe)
            self._fed(image)
        finally:
            if pipe is not None:
                trio.lowlevel.notify_closing(pipe)
                os.close(pipe)

    def _find(self, name: str, snapshot: str) -> StoredImage | None:
        for one in self.session.store.lineage:
            if one.snapshot == snapshot:
                return one.images.get(name)
        return self.session.store.find(name) if snapshot in self.snapshots else None

    def _fed(self, image: StoredImage) -> None:
        self.session.metrics.image_bytes.labels("out", image_kind(image.name)).inc(image.size)
        if is_pages(image.name) and self._leftovers is not None:
            self._leftovers.note_children()


class RemoteRestores:
    """All restores that come to one socket."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._restores: list[_Restore] = []

    async def take(
        self,
        path: Path,
        name: str | None,
        directories: Sequence[Path] = (),
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Listen at `path`, found also in `directories`; each restore gets the session of that name (None: any)."""
        async with listening(path, backlog=128) as listener, flat_nursery() as nursery:
            with linked(path, directories):
                task_status.started()
                while True:
                    sock, _ = await listener.accept()
                    nursery.start_soon(self._connection, RemoteClient(sock), name)

    async def _connection(self, client: RemoteClient, name: str | None) -> None:
        """One connection to its end. What its client does wrong ends only this one."""
        try:
            with client.sock:
                if not allowed(client.peer):
                    raise RemoteProtocolError(f"user {client.peer.uid} may not have images")
                await self._answer(client, await client.request(), name)
        except BrokenPipeError:  # CRIU often closes an image before its end
            return
        except (RemoteProtocolError, OSError) as error:
            _log.warning("a local connection is closed", pid=client.peer.pid, error=str(error))

    async def _answer(self, client: RemoteClient, event: LocalEvent | None, name: str | None) -> None:
        match event:
            case SnapshotsWanted():
                await self._restore(client, name)
            case ImageWanted(image, snapshot):
                restore = self._of(client.peer.pid, snapshot)
                await restore.do(lambda: restore.read(client, image, snapshot))
            case Finished(Finish.RESTORE):
                self._ending(client.peer.pid).finished.set()
            case None:
                return
            case _:
                raise RemoteProtocolError("criu restore wants to write: is the imgproxy of a dump meant?")

    async def _restore(self, client: RemoteClient, name: str | None) -> None:
        criu = client.peer.pid
        words = _command_line(criu)
        async with flat_nursery() as nursery:
            nursery.start_soon(self._explain, criu, _named(words))
            session = await claim(self._registry, criu, name, partial(_fits, _named(words)))
            nursery.cancel_scope.cancel()
        if session is None:
            return
        restore = _Restore(criu, words, session)
        self._restores.append(restore)
        try:
            await restore.run(client)
        finally:
            self._restores.remove(restore)
            self._registry.release(session)

    async def _explain(self, criu: int, snapshot: str | None) -> None:
        """A restore that waits beside a session that nobody wants has probably been given another -D than the dump."""

        def unwanted() -> list[Session]:
            live = [one for one in self._registry.live() if not one.claimed and not _fits(snapshot, one)]
            return [one for one in live if one.state is not SessionState.RECEIVING]

        await self._registry.changes.wait_until(lambda: bool(unwanted()))
        for session in unwanted():
            _log.warning(
                "criu restore waits for another id than this session has: it must be the -D of the dump, word for word",
                criu=criu,
                wanted=snapshot,
                session=session.name,
                ids=_ids(session),
            )

    def _of(self, pid: int, snapshot: str) -> _Restore:
        """The restore that a connection belongs to: its CRIU's, or that of a task that it restores."""
        for ancestor in proc.ancestors(pid):
            for restore in self._restores:
                if restore.criu == ancestor:
                    return restore
        for restore in self._restores:  # a task in a pid namespace of its own, whose parents cannot be seen
            if snapshot in restore.snapshots:
                return restore
        raise RemoteProtocolError("a local client asks for an image before the list of ids")

    def _ending(self, pid: int) -> _Restore:
        """The restore whose CRIU (pid 0: it cannot be seen) says that it has ended. Of several only it may know."""
        pids = proc.ancestors(pid) or [0]
        found = [restore for restore in self._restores if restore.criu in pids]
        if len(found) != 1:
            raise RemoteProtocolError(f"the end of a restore, of {len(found)} that it may be of")
        return found[0]


def _ids(session: Session) -> list[str]:
    """The ids of what has come of the session; "" if it came without."""
    return [one.snapshot for one in session.store.rounds]


def _fits(snapshot: str | None, session: Session) -> bool:
    """Whether a restore that asks for `snapshot` (None: not known) may be meant for what has come of the session."""
    ids = _ids(session)
    return bool(ids) and (snapshot is None or not any(ids) or snapshot in ids)


def _command_line(pid: int) -> list[str]:
    """What CRIU was started with; nothing for one that cannot be seen."""
    try:
        return proc.command_line(pid) if pid else []
    except ProcessLookupError:
        return []


def _named(words: Sequence[str]) -> str | None:
    """The id by which a CRIU with this command line asks for its images; None for one that is driven by RPC."""
    named = values_of(words, "images-dir")
    return named[-1] if named else None
