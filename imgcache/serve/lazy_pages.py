"""Post-copy at the destination: `criu lazy-pages` gets the pages that it asks for, from the cache or from the source.

One such program serves one restore. It is started, and its process tree watched, by `imgcache.lazy_guard`; it reads a
few images from real files, which are written for it into the session's directory, and asks for pages on a socket that
it inherits, in any order. It wants its answers in the order in which it has asked; they may have fewer pages.
"""

import os
import socket
import subprocess
import sys
from collections import deque
from pathlib import Path

import structlog
import trio

from imgcache.arena import pread_all
from imgcache.lazy_memory import Memory
from imgcache.serve.extract import write_image
from imgcache.session import Session
from imgnode import proc
from imgnode.nursery import flat_nursery
from imgnode.pipes import send_file
from imgnode.signalling import Changes
from imgwire.errors import RemoteProtocolError
from imgwire.names import image_kind
from imgwire.page_server import PageServerConnection, Purpose
from imgwire.page_server_messages import PAGE_SIZE, Closing, PagesAsked, PageServerEvent
from imgwire.states import SessionState

#: What criu lazy-pages reads from files: it cannot stream.
_FILES = ("inventory", "pstree", "mm", "pagemap")
#: Seconds for a guard that was told to end, or killed, to have killed what it guards.
PATIENCE = 15.0
#: Bytes of requests received at a time: a hundred.
RECEIVED_AT_ONCE = 4096
#: Pages that are answered without leaving the task that receives: what a fault asks for, and some more.
AT_ONCE = 16

_log = structlog.get_logger()


class GuardGone(Exception):
    """The restored tree cannot be guarded: it must not run."""


class LazyPages:
    """The memory of one restore of a session."""

    def __init__(self, session: Session, memory: Memory, criu: str, journal: Path) -> None:
        self._session, self._memory, self._criu, self._journal = session, memory, criu, journal
        self._changes = Changes()
        self._guarded = False
        self._init = 0
        self.verdict = ""  #: "over", or what the guard has said when it failed

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Until all memory is there, or the tree is dead, or cancelled; then nothing of it is left."""
        ours, theirs = socket.socketpair()
        with trio.socket.from_stdlib_socket(ours) as sock:
            with theirs:
                guard = await trio.lowlevel.open_process(
                    self._words(theirs.fileno()),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    start_new_session=True,
                    pass_fds=[theirs.fileno()],
                )
            try:
                task_status.started()
                await self._conduct(guard, sock)
            finally:
                sock.close()
                with trio.CancelScope(shield=True):
                    await self._end(guard)

    async def guard(self, init: int) -> None:
        """All is restored, nothing has run: from now on the tree under `init` dies rather than runs without memory."""
        self._init = init
        self._changes.notify()
        await self._changes.wait_until(lambda: self._guarded or bool(self.verdict))
        if self.verdict:
            raise GuardGone(self.verdict)

    async def ended(self) -> None:
        """Return when it is known what became of the process."""
        await self._changes.wait_until(lambda: bool(self.verdict))

    def _words(self, pages: int) -> list[str]:
        root = str(Path(__file__).resolve().parent.parent.parent)
        code = f"import sys; sys.path.insert(0, {root!r}); import imgcache.lazy_guard as g; sys.exit(g.main())"
        session = self._session
        given = [self._criu, str(session.directory), str(pages), str(self._journal), session.identity]
        return [sys.executable, "-S", "-E", "-c", code, *given]

    async def _conduct(self, guard: trio.Process, sock: trio.socket.SocketType) -> None:
        session = self._session
        assert guard.stdin and guard.stdout
        await session.changes.wait_until(lambda: session.state is not SessionState.RECEIVING)
        if session.state is SessionState.ABORTED:
            return
        with session.reading():
            await trio.to_thread.run_sync(self._write_files)
        async with flat_nursery() as nursery:
            nursery.start_soon(self._tell, guard.stdin)
            nursery.start_soon(self._serve, sock)
            await self._listen(guard.stdout)
            nursery.cancel_scope.cancel()

    async def _tell(self, out: trio.abc.SendStream) -> None:
        try:
            await out.send_all(b"start\n")
            await self._changes.wait_until(lambda: bool(self._init))
            await out.send_all(b"guard %d\n" % self._init)
        except trio.BrokenResourceError:  # its end shows where its words are read
            return

    async def _listen(self, lines: trio.abc.ReceiveStream) -> None:
        """What the guard says, until its last word."""
        buffer = b""
        while not self.verdict:
            data = await lines.receive_some(4096)
            buffer += data
            *whole, buffer = buffer.split(b"\n")
            for line in whole:
                self._heard(line.decode(errors="replace"))
            if not data and not self.verdict:
                self.verdict = "the guard of the restored process died"
            self._changes.notify()

    def _heard(self, line: str) -> None:
        match line.partition(" "):
            case ("ready", _, _):
                self._session.memory_is_served()
            case ("guarded", _, _):
                self._guarded = True
            case (word, _, rest):
                self.verdict = word if word == "over" else rest

    async def _end(self, guard: trio.Process) -> None:
        """Let go of the guard: if there is still something to guard it kills that. If it was killed we do."""
        assert guard.stdin and guard.stdout
        await guard.stdin.aclose()
        with trio.move_on_after(PATIENCE):
            await guard.wait()
        if guard.returncode is None:
            guard.kill()
            await guard.wait()
        await guard.stdout.aclose()
        if self._init and self.verdict != "over":
            await trio.to_thread.run_sync(_kill, self._init)
        if not self.verdict:
            self.verdict = "let go"
        self._changes.notify()

    def _write_files(self) -> None:
        for image in self._session.images:
            if image_kind(image.name) in _FILES:
                path = self._session.directory / image.name
                path.unlink(missing_ok=True)
                write_image(path, list(image.extents()))

    # ---- pages ----

    async def _serve(self, sock: trio.socket.SocketType) -> None:
        """Answer criu lazy-pages until it is gone. What it does wrong ends it, and its guard says so."""
        try:
            await PageAnswers(sock, self._session, self._memory).run()
        except* (
            RemoteProtocolError,
            OSError,
            trio.BrokenResourceError,
        ) as errors:  # killed, it may fail both ways at once
            reason = "; ".join(map(str, errors.exceptions))
            _log.warning("criu lazy-pages is not served any further", session=self._session.name, error=reason)
            sock.close()


class PageAnswers:
    """The conversation with one `criu lazy-pages`.

    A page that somebody waits for and that is here is answered where its request is received: with all its threads
    waking on pages, a process asks for 10,000 of them in a second.
    """

    def __init__(self, sock: trio.socket.SocketType, session: Session, memory: Memory) -> None:
        self._sock, self._session, self._memory = sock, session, memory
        self._connection = PageServerConnection(Purpose.LAZY)
        self._due: deque[PagesAsked | Closing | bytes] = deque()  # requests, or what is left of an answer
        self._changes = Changes()

    async def run(self) -> None:
        """Until it has said goodbye, or hangs up. RemoteProtocolError, OSError, trio.BrokenResourceError; or several of
        them."""
        async with flat_nursery() as nursery:
            nursery.start_soon(self._answer)
            while self._connection.wanted:
                data = await self._sock.recv(RECEIVED_AT_ONCE)
                for event in self._connection.receive_data(data) if data else self._connection.receive_eof():
                    self._take(event)
            await self._changes.wait_until(lambda: not self._due)
            nursery.cancel_scope.cancel()

    def _take(self, event: PageServerEvent) -> None:
        if isinstance(event, PagesAsked):
            if not self._due and event.pages <= AT_ONCE and self._answer_at_once(event):
                return
            wanted = self._memory.ask(event.pid, event.address)
            if wanted is not None:
                self._session.want(wanted)
        if isinstance(event, PagesAsked | Closing):
            self._due.append(event)
            self._changes.notify()

    def _answer_at_once(self, one: PagesAsked) -> bool:
        parts = self._memory.find(one.pid, one.address, one.pages)
        if not parts:
            return False
        pages = b"".join(pread_all(part.fd, part.length, part.offset) for part in parts)
        answer = self._connection.answer_get(len(pages) // PAGE_SIZE) + pages
        try:
            sent = os.write(self._sock.fileno(), answer)
        except BlockingIOError:
            sent = 0
        if sent < len(answer):
            self._due.append(answer[sent:])
            self._changes.notify()
        return True

    async def _answer(self) -> None:
        stream = trio.SocketStream(self._sock)
        while True:
            await self._changes.wait_until(lambda: bool(self._due))
            match self._due[0]:
                case bytes() as rest:
                    await stream.send_all(rest)
                case Closing():
                    await stream.send_all(self._connection.answer_close(0))
                case PagesAsked() as one:
                    await self._send_pages(stream, one)
            self._due.popleft()
            self._changes.notify()

    async def _send_pages(self, stream: trio.SocketStream, one: PagesAsked) -> None:
        """As many as are here, once the first of them is."""
        memory = self._memory
        await self._session.changes.wait_until(lambda: bool(memory.find(one.pid, one.address, 1)))
        parts = memory.find(one.pid, one.address, one.pages)
        await stream.send_all(self._connection.answer_get(sum(part.length for part in parts) // PAGE_SIZE))
        for part in parts:
            await send_file(part.fd, part.offset, part.length, stream.socket.fileno())


def _kill(init: int) -> None:
    """The guard is gone, and with it the certainty that pages come: nothing of the tree may run on."""
    try:
        tree = proc.tree(init)
    except ProcessLookupError:
        return
    proc.kill_tree(tree)
    proc.wait_doomed(tree, PATIENCE)
