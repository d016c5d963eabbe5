"""The original `criu pre-dump --remote` and `criu dump --remote` on their socket: one connection per image.

    push of an id -> images -> (another push ...) -> finish of a dump

Each push begins a round. The client waits for no answer to what it writes, so connections are taken in the order in
which it made them: those of one process by waiting for the one before, those of its children because it waits for
them itself. One that says nothing holds nobody up. A round is whole when its last image, the inventory, has been read
to its end and no other is open; one whose CRIU dies before is dropped, and the next may follow.

The client believes a dump to have succeeded when its bytes are written. So its action script is what makes it wait for
the cache; without it the hand-over begins when all is over here.
"""

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from imgnode.nursery import flat_nursery
from imgnode.pipes import Pipe, splice_all, write_all
from imgnode.process import watch
from imgnode.remote_client import RemoteClient, put
from imgnode.signalling import Changes
from imgnode.unix import allowed, linked, listening, readable
from imgproxy.ingest.remote_run import Connection, Run, are_gone, dumped_by, identified
from imgproxy.page_pump import SentImage
from imgproxy.sender import ImageSender
from imgwire.errors import RemoteProtocolError
from imgwire.frames import MAX_DATA
from imgwire.img_remote import Finished, ImageWanted, ImageWritten, LocalEvent, SnapshotPushed, SnapshotsWanted
from imgwire.names import LAST_IMAGE, is_of_pre_dump
from transform.chain import MakeChain

SOCKET = "img-proxy.sock"
#: Connections that CRIU has made and we have not taken: it has up to eight images open, and does not wait.
BACKLOG = 128

#: Reads `length` bytes of a sent image from `offset`, out of the cache.
ReadBack = Callable[[SentImage, int, int], Awaitable[bytes]]

_log = structlog.get_logger()


class RemoteIngest:
    """Takes pre-dumps and one dump and gives their images to the sender."""

    begins_with = "pre-dump"  #: the action of CRIU's that comes first in a dump

    def __init__(
        self,
        sender: ImageSender,
        make_chain: MakeChain,
        read_back: ReadBack,
        changed: Callable[[], None],
        *,
        insists: bool = False,
        incremental: bool = False,
        linked: Sequence[Path] = (),
    ) -> None:
        self._sender, self._make_chain, self._read_back = sender, make_chain, read_back
        self._changed = changed
        self._insists = insists  #: on the action script
        self._incremental = incremental  #: the client may learn of the rounds before
        self._linked = linked  #: other directories in which it looks for its socket
        self._changes = Changes()
        self._run: Run | None = None
        self._is_announced: Callable[[int], bool] = lambda _pid: False
        self._unheard: set[Connection] = set()
        self._latest: dict[int, Connection] = {}
        self._following: set[int] = set()  # CRIUs that wait until the one before has ended
        self._strangers: set[int] = set()  # CRIUs that were refused, and do not know: they go on
        self._sent: dict[tuple[str, str], SentImage] = {}
        self._finished = False
        self.ended_well = False  #: its end may be taken for its success, without a word of its action script
        self.variant = ""
        self.started_at: float | None = None  #: time of the first image of the dump: the tasks are frozen

    @property
    def criu(self) -> int:
        """The pid of the CRIU that dumps, or that was the last to pre-dump."""
        return self._run.criu if self._run else 0

    @property
    def complete(self) -> bool:
        """Whether every image of the latest round has been read to its end."""
        return bool(self._run and self._run.whole) and all(one.silent for one in self._unheard)

    @asynccontextmanager
    async def listening(self, directory: Path) -> AsyncIterator[trio.socket.SocketType]:
        """CRIU's socket in its images directory, and links to it in others."""
        path = directory / SOCKET
        async with listening(path, backlog=BACKLOG) as listener:
            with linked(path, self._linked):
                yield listener

    async def accept(self, listener: trio.socket.SocketType, is_announced: Callable[[int], bool]) -> None:
        """Take pre-dumps and a dump, return at its end. Others are turned away."""
        self._is_announced, self._listener = is_announced, listener
        async with flat_nursery() as nursery:
            nursery.start_soon(self._listen, listener)
            await self._changes.wait_until(lambda: self._finished)
            await self._changes.wait_until(lambda: not self._run or not self._run.open_images)
            nursery.cancel_scope.cancel()
        run = self._run
        if run and run.whole and run.dumps and not run.announced:
            self.ended_well = await trio.to_thread.run_sync(are_gone, run.tasks)

    async def finish(self) -> None:
        """All is sent as it is written."""
        await trio.lowlevel.checkpoint()

    async def _listen(self, listener: trio.socket.SocketType) -> None:
        async with flat_nursery() as nursery:
            while True:
                sock, _ = await listener.accept()
                client = RemoteClient(sock)
                connection = Connection(client, self._latest.get(client.peer.pid))
                self._latest[client.peer.pid] = connection
                self._unheard.add(connection)
                self._changes.notify()  # what was to be read here is taken: `_heard_out` may hold now
                nursery.start_soon(self._serve, connection, nursery)

    async def _serve(self, connection: Connection, nursery: trio.Nursery) -> None:
        """One connection to its end. What its client does wrong ends only this one: CRIU fails by it."""
        client = connection.client
        try:
            with client.sock:
                await self._answer(connection, nursery)
        except (RemoteProtocolError, BrokenPipeError) as error:
            _log.warning("a local connection is closed", pid=client.peer.pid, error=str(error))
        finally:
            if self._latest.get(client.peer.pid) is connection:
                del self._latest[client.peer.pid]
            self._heard(connection)

    def _heard(self, connection: Connection) -> None:
        """What it wants has been taken note of: whoever came after it may go on."""
        self._unheard.discard(connection)
        connection.heard.set()
        self._notify()

    async def _answer(self, connection: Connection, nursery: trio.Nursery) -> None:
        client = connection.client
        if not allowed(client.peer):
            raise RemoteProtocolError(f"user {client.peer.uid} may not use it; run criu as the user of imgproxy")
        event = await client.request()
        self._changes.notify()  # likewise, and the same for `silent`
        if connection.before is not None:
            await connection.before.heard.wait()
            connection.before = None
        match event:
            case SnapshotPushed(snapshot):
                await self._pushed(client.peer.pid, snapshot, nursery)
            case _ if client.peer.pid and client.peer.pid in self._strangers:
                raise RemoteProtocolError("it is of a criu that was refused")
            case ImageWritten():
                await self._take_image(connection, event)
            case _:
                self._heard(connection)
                await self._tell(client, event)

    async def _tell(self, client: RemoteClient, event: LocalEvent | None) -> None:
        match event:
            case SnapshotsWanted():
                await client.say_snapshots(self._known(self._of(self._run)))
            case ImageWanted(name, snapshot):
                await self._show(client, self._sent.get((snapshot, name)))
            case Finished():
                self._check_end(client.peer.pid)
                await self._changes.wait_until(lambda: all(one.silent for one in self._unheard))
                self._finished = True

    def _check_end(self, criu: int) -> None:
        """Nobody but the CRIU that dumps may end it."""
        if self._run is not None and criu != self._run.criu:
            raise RemoteProtocolError(f"the end of a dump, but not of that of pid {self._run.criu}")

    def _known(self, run: Run) -> list[str]:
        """What CRIU learns of ids, oldest first. The unmodified one fails at its second pre-dump if that is more than
        the latest; a mended one takes the one before for the parent, and sends what has changed since."""
        before = dict.fromkeys(snapshot for snapshot, name in self._sent if name == LAST_IMAGE)
        return [*(before if self._incremental else ()), run.snapshot]

    def _of(self, run: Run | None) -> Run:
        if run is None:
            raise RemoteProtocolError("an image before the id of its snapshot")
        return run

    async def _pushed(self, criu: int, snapshot: str, nursery: trio.Nursery) -> None:
        """A CRIU that is refused is not told, as a push has no answer: it goes on, and none of it may be taken."""
        self._strangers.add(criu)
        await self._begin(criu, snapshot, nursery)
        self._strangers.discard(criu)

    async def _begin(self, criu: int, snapshot: str, nursery: trio.Nursery) -> None:
        """A pre-dump or a dump begins: a round of its own, once the one before is whole or dropped."""
        while (before := self._run) is not None and (before.dumps or not before.whole) and not before.settled.is_set():
            if before.criu == criu and before.open_images:  # the same one goes on, as RPC may have it
                await self._changes.wait_until(lambda: not before.open_images)
                continue
            if before.alive:
                raise RemoteProtocolError(
                    f"a second criu (pid {criu}, -D {snapshot}) is refused: pid {before.criu} is not through with "
                    f"{before.snapshot}; start an imgproxy of its own for each migration"
                )
            await self._follow(criu, before)
        self._run = Run(identified(criu), snapshot)
        self._forget(snapshot)
        await self._sender.begin_round(snapshot, self._make_chain(dump=False), pre_dump=True)
        if criu:
            nursery.start_soon(self._watch, self._run)
        _log.info("round begins", snapshot=snapshot, criu=criu)

    async def _follow(self, criu: int, before: Run) -> None:
        self._following.add(criu)
        self._changes.notify()
        try:
            await before.settled.wait()
        finally:
            self._following.discard(criu)

    def _forget(self, snapshot: str) -> None:
        self._sent = {key: image for key, image in self._sent.items() if key[0] != snapshot}

    async def _watch(self, run: Run) -> None:
        """When its CRIU has ended: was that a pre-dump, a dump that failed, or one that ended without a word?"""
        await watch(run.criu)
        await self._changes.wait_until(lambda: self._heard_out and not run.open_images)
        killed = run.whole and run.dumps and not run.announced and await trio.to_thread.run_sync(are_gone, run.tasks)
        if run.announced or killed:
            self._finished = True
        elif self._run is run and (run.dumps or not run.whole):
            _log.warning("criu ended before its images were complete: they are dropped", snapshot=run.snapshot)
            await self._sender.drop_round()
            self._forget(run.snapshot)
            self._run = None
        run.settled.set()
        self._notify()

    @property
    def _heard_out(self) -> bool:
        """Whether all is known that anybody has said so far, but by those who wait for the end of the run."""
        talking = [one for one in self._unheard if not one.silent and one.client.peer.pid not in self._following]
        return not readable(self._listener) and not talking

    async def _take_image(self, connection: Connection, event: ImageWritten) -> None:
        run = self._of(self._run)
        if event.snapshot != run.snapshot or event.name in run.images:
            raise RemoteProtocolError(f"{event.name} of {event.snapshot}: sent twice, or in the dump of {run.snapshot}")
        begins = not run.dumps and not is_of_pre_dump(event.name)
        if begins:
            self._begin_dump(run)
        run.images.add(event.name)
        run.open_images += 1
        self._heard(connection)
        taken = False
        try:
            if begins and not run.announced:
                run.tasks = await trio.to_thread.run_sync(dumped_by, run.criu)
            await self._image(connection.client, event.name)
            taken = True
        finally:
            run.open_images -= 1
            run.spoiled |= not taken
        run.last_seen |= event.name == LAST_IMAGE
        if event.name in self._sender.images:  # else a transform holds it
            self._sent[event.snapshot, event.name] = self._sender.images[event.name]

    def _begin_dump(self, run: Run) -> None:
        run.announced = self._is_announced(run.criu)
        if self._insists and not run.announced:
            raise RemoteProtocolError(
                "a criu dump that did not announce itself was refused; its tasks run on. Run it as this user, with "
                "--action-script imgproxy-hook"
            )
        if not run.announced:
            _log.warning("criu dumps without our action script: it ends the process before the cache has it all")
        self._sender.take_for_dump(self._make_chain(dump=True))
        run.dumps, self.started_at = True, trio.current_time()

    async def _image(self, client: RemoteClient, name: str) -> None:
        where = await client.body()
        if isinstance(where, int):
            self.variant = "pipe"
            try:
                await self._sender.send_from_pipe(name, where)
            finally:
                trio.lowlevel.notify_closing(where)
                os.close(where)
            return
        self.variant = "nopipe"
        pipe = Pipe()
        try:
            async with flat_nursery() as nursery:
                await write_all(pipe.writer, where)
                nursery.start_soon(splice_all, client.sock.fileno(), pipe)
                await self._sender.send_from_pipe(name, pipe.reader)
        finally:
            pipe.close()

    async def _show(self, client: RemoteClient, image: SentImage | None) -> None:
        """An image that went to the cache, for a client that looks at a round before."""
        if image is None:
            await client.say_missing()
            return
        pipe = await client.target(self.variant)
        try:
            for offset in range(0, image.size, MAX_DATA):
                size = min(MAX_DATA, image.size - offset)
                await put(client, pipe, await self._read_back(image, offset, size))
        finally:
            if pipe is not None:
                trio.lowlevel.notify_closing(pipe)
                os.close(pipe)

    def _notify(self) -> None:
        self._changes.notify()
        self._changed()
