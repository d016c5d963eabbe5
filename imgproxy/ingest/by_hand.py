"""Pre-dumps and a dump that somebody else runs, with options that we print: near-live migration by CRIU's own commands.

    criu pre-dump -t PID $(imgproxy rounds -D R)          as often as wanted
    criu dump -t PID $(imgproxy rounds -D R --last) ...   once

The pages come to our page server by TCP, the rest of the dump from its images directory, R/1, R/2 and so on. One CRIU
is at work at a time:

    nobody --(a CRIU connects that has the directory which was printed last)--> at work
    at work --(it has ended)--> nobody: a pre-dump went well, or its round is dropped and the next begins anew
    at work --(the post-dump script of a dump)--> hand-over, which ends the session

Nothing depends on CRIU's command line, but for one thing. A dump is a CRIU that our action script has announced; nobody
else is told that its pages are safe while it holds a process, so none is killed without us, unless it was clearly told
to leave it running: such a dump is a pre-dump to us. A pre-dump went well if its CLOSE was answered and it ended with
its statistics written. It refers to the round before only if that is its parent directory.
"""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import structlog
import trio

from imgnode.command_line import show_size
from imgnode.control import Handler, Say
from imgnode.control_client import Request
from imgnode.criu_run import STATS, CriuRun, criu_behind
from imgnode.nursery import flat_nursery
from imgnode.signalling import Changes
from imgnode.tcp_peer import is_trusted, local_peer
from imgproxy.convergence import Convergence, RoundFigures
from imgproxy.hook import SCRIPT
from imgproxy.ingest.rounds import RoundsIngest
from imgwire.errors import RemoteProtocolError
from imgwire.names import LAST_IMAGE
from transform.errors import ImageError
from transform.images.codec import decode
from transform.images.wire import WireError, records

#: Where the page server listens: CRIU runs on this node.
ADDRESS = "127.0.0.1"
#: Beside images, what CRIU leaves in its images directory.
_CRIU_LEAVES = ("parent", "irmap-cache", STATS)

READ_MODE = "pre-dumps with --pre-dump-mode read, which spoils pages on their way to a page server: leave it out"
_READ = (9, b"\x02")  # pre_dump_mode in CRIU's images/inventory.proto, and its value for that

_log = structlog.get_logger()


class RoundsByHand:
    """The rounds of one migration; whoever types CRIU's commands says when each begins and ends."""

    begins_with = "pre-dump"
    variant = ""
    ended_well = False

    def __init__(self, rounds: RoundsIngest, directory: Path, port: int = 0) -> None:
        self.rounds, self._directory, self._port = rounds, directory, port
        self.criu = 0
        self._prepared: Path | None = None
        self._made: list[Path] = []
        self._at_work: CriuRun | None = None
        self._taking = False
        self._over = False
        self._changes = Changes()
        self._figures = Convergence(None)
        self._note = "the first round carries all of the memory"

    @property
    def started_at(self) -> float | None:
        """When the dump brought its first word of pages."""
        return self.rounds.started_at

    @property
    def complete(self) -> bool:
        """Whether everything of the dump has been sent."""
        return self.rounds.complete

    @asynccontextmanager
    async def listening(self, directory: Path) -> AsyncIterator[trio.socket.SocketType]:
        """The page server's port; OSError if it is taken."""
        with trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                await listener.bind((ADDRESS, self._port))
            except OSError as error:
                raise OSError(error.errno, error.strerror, f"{ADDRESS}:{self._port}") from error
            listener.listen()
            self._port = listener.getsockname()[1]
            async with self.rounds.listening(directory):
                try:
                    yield listener
                finally:
                    self._clear()

    async def accept(self, listener: trio.socket.SocketType, is_announced: Callable[[int], bool]) -> None:
        """Take round after round, return at the hand-over of a dump."""
        async with flat_nursery() as nursery:
            nursery.start_soon(self._admit, listener, is_announced, nursery)
            await self._changes.wait_until(lambda: self._over and not self._taking)
            nursery.cancel_scope.cancel()

    async def finish(self) -> None:
        """The dump has written its files: send what has not gone out."""
        self._over = True
        self._changes.notify()
        await self.rounds.finish()

    async def handle(self, otherwise: Handler, request: Request, say: Say, gone: Callable[[], Awaitable[None]]) -> None:
        """Answer `imgproxy rounds`, once nobody is at work; leave other requests to `otherwise`."""
        if request.get("op") != "rounds":
            await otherwise(request, say, gone)
        elif await self._settled(gone):
            await say({"ok": True, "options": self._options(last=bool(request.get("last"))), "note": self._note})

    async def _settled(self, gone: Callable[[], Awaitable[None]]) -> bool:
        """Whether nobody is at work any more; False if who asked has gone before."""
        settled = False
        async with flat_nursery() as nursery:

            async def hung_up() -> None:
                await gone()
                nursery.cancel_scope.cancel()

            nursery.start_soon(hung_up)
            await self._changes.wait_until(lambda: self._at_work is None and not self._over)
            settled = True
            nursery.cancel_scope.cancel()
        return settled

    def _options(self, *, last: bool) -> list[str]:
        """For the next CRIU. A directory in which nobody has been is printed again."""
        if self._prepared is None or any(self._prepared.glob("*.img")):
            self._prepared = self.rounds.prepare()
            self._made.append(self._prepared)
        parent = self.rounds.parent
        words = ["-D", str(self._prepared), *(["--prev-images-dir", f"../{parent.name}"] if parent else [])]
        words += ["--track-mem", "--page-server", "--address", ADDRESS, "--port", str(self._port)]
        return [*words, *(["--action-script", str(self._directory / SCRIPT)] if last else [])]

    def _clear(self) -> None:
        """Leave nothing of the process in the directories. Logs stay; in the last a dump may be at its end."""
        for directory in self._made:
            for path in (*directory.glob("*.img"), *(directory / name for name in _CRIU_LEAVES)):
                path.unlink(missing_ok=True)
            at_its_end = self._over and directory == self._made[-1]
            if not at_its_end and not any(directory.iterdir()):
                directory.rmdir()

    # ---- who connects ----

    async def _admit(
        self, listener: trio.socket.SocketType, is_announced: Callable[[int], bool], nursery: trio.Nursery
    ) -> None:
        while True:
            sock, _ = await listener.accept()
            run = await trio.to_thread.run_sync(_who, sock)
            dumps = isinstance(run, CriuRun) and is_announced(run.pid)
            if isinstance(run, str) or (refusal := self._refusal(run, dumps=dumps)):
                reason = run if isinstance(run, str) else f"criu (pid {run.pid}) {refusal}"
                _log.error("turned away from the page server", reason=reason)
                sock.close()
                continue
            self._at_work, self._prepared, self._taking = run, None, True
            self.criu = run.pid
            nursery.start_soon(self._round, sock, run, dumps)

    def _refusal(self, run: CriuRun, *, dumps: bool) -> str:
        """Why it may not bring its pages; "" if it may."""
        if self._at_work or self._over:
            other = f"criu (pid {self._at_work.pid})" if self._at_work else "the hand-over"
            return f"comes while {other} is at work: one after the other"
        if self._prepared is None or not run.works_in(self._prepared):
            return (
                f"has not the -D of this round: let `imgproxy rounds -D {self._directory}` print its options each time"
            )
        if run.says_dump and not dumps and not run.leaves_running:
            return self._unhooked()
        if run.option("pre-dump-mode") == "read":
            return READ_MODE
        return ""

    def _unhooked(self) -> str:
        return f"dumps without --action-script {self._directory / SCRIPT}: its tasks run on; `imgproxy rounds --last`"

    # ---- one that is at work ----

    async def _round(self, sock: trio.socket.SocketType, run: CriuRun, dumps: bool) -> None:
        began = trio.current_time()
        refers = self._refers(run, dumps=dumps)
        action = "dump" if run.says_dump or dumps else "pre-dump"
        _log.info(f"round {self.rounds.directory.name} begins", action=action, pid=run.pid)
        with sock:
            await self.rounds.begin(dump=dumps, refers=refers)
            harmless = dumps or run.leaves_running  # our script holds it back, or it was told to kill nobody
            await self.rounds.take(sock, trio.lowlevel.checkpoint if harmless else lambda: self._let_go(run))
        self._taking = False
        self._changes.notify()
        if dumps and await self._hands_over(run):
            return
        await run.ended()
        figures = RoundFigures(self.rounds.round_size, began, trio.current_time())
        failure = await trio.to_thread.run_sync(self._failure, run, dumps)
        await self.rounds.end(good=not failure)
        self._tell(run, figures, failure)
        self._at_work = None
        self._changes.notify()

    def _refers(self, run: CriuRun, *, dumps: bool) -> bool:
        """Whether it knows the round before as its parent; if it does not, although there is one, that is said."""
        parent = self.rounds.parent
        if parent is None:
            return False
        knows = (self.rounds.directory / "parent").resolve() == parent.resolve()
        tracks = not (dumps and run.says_dump) or "--track-mem" in run.words or "--config" in run.words
        if not knows or not tracks:
            missing = "--track-mem" if knows else f"--prev-images-dir ../{parent.name}"
            _log.warning(f"everything is sent again: criu runs without {missing}", pid=run.pid)
        return knows

    async def _let_go(self, run: CriuRun) -> None:
        """A pre-dump has let its tasks go before it says that it has said all. RemoteProtocolError: this is a dump."""
        if await trio.to_thread.run_sync(run.holds):
            raise RemoteProtocolError(self._unhooked())

    async def _hands_over(self, run: CriuRun) -> bool:
        """Whether a dump comes to its post-dump script; if it ends without, its tasks run on."""
        async with flat_nursery() as nursery:

            async def end() -> None:
                await run.ended()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            await self._changes.wait_until(lambda: self._over)
            nursery.cancel_scope.cancel()
        return self._over

    def _failure(self, run: CriuRun, dumps: bool) -> str:
        """Why what has ended does not count; "" if it does, as a pre-dump that went well."""
        if self.rounds.server.failure:
            return self.rounds.server.failure
        if dumps:
            return "it ended before its post-dump script"
        if not run.ended_well():
            return "it did not end well: its own messages say why"
        return _fault(self.rounds.directory / LAST_IMAGE)

    def _tell(self, run: CriuRun, figures: RoundFigures, failure: str) -> None:
        number, seconds = self.rounds.directory.name, figures.ended - figures.began
        if failure:
            self._figures = Convergence(None)
            self._note = f"round {number} was dropped, so the next carries all of the memory"
            _log.warning(
                f"round {number} was dropped; the process runs on", reason=failure, criu=run.cause(), pid=run.pid
            )
            return
        self._figures.add(figures)
        predicted = self._figures.predicted(trio.current_time())
        self._note = f"round {number} carried {show_size(figures.size)} in {seconds:.3f} s"
        self._note += "" if predicted is None else f"; a dump now would freeze the process for about {predicted:.3f} s"
        _log.info(f"round {number} is at the cache", bytes=figures.size, seconds=round(seconds, 3))


def _who(sock: trio.socket.SocketType) -> CriuRun | str:
    """The CRIU that connected; or why it is none for us."""
    peer = local_peer(sock)
    if peer is None:
        return "it has gone"
    if not is_trusted(sock):
        return f"it belongs to uid {peer.uid}"
    return criu_behind(peer.inode) or "it has gone, or is a process that cannot be seen from here"


def _fault(inventory: Path) -> str:
    """What is wrong with a pre-dump by its inventory; "" if nothing is."""
    try:
        (entry,) = decode(inventory.name, inventory.read_bytes()).entries
        fields = list(records(entry.raw))
    except (ImageError, WireError, ValueError, FileNotFoundError):
        return f"it has left no readable {LAST_IMAGE}"
    return READ_MODE if any((one.number, one.value) == _READ for one in fields) else ""
