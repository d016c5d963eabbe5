"""Near-live migration: pre-dump rounds while the process runs, until another one does not pay; the dump is the last.

CRIU is run for each round, and brings the pages to our page server over a socket that it inherits (`--ps-socket`): no
port, nobody else can speak on it. A pre-dump that fails is dropped, and ends pre-dumping: what follows is a dump of
everything, as without rounds.
"""

import socket
import subprocess
from collections.abc import Awaitable, Callable, Sequence

import structlog
import trio

from imgnode.criu import Criu, cause
from imgnode.criu_options import for_pre_dump
from imgnode.criu_orphans import end_orphans
from imgnode.nursery import flat_nursery
from imgproxy.convergence import Convergence, RoundFigures
from imgproxy.handover import RestoreFailed
from imgproxy.ingest.rounds import RoundsIngest
from imgproxy.source import CacheView

#: What CRIU and the kernel must have: soft-dirty bits.
FEATURE = "mem_dirty_track"
#: Seconds for a CRIU whose page server is gone to let the tasks go.
PATIENCE = 10.0

_log = structlog.get_logger()


async def tracks_changes(criu: str) -> bool:
    """Whether pre-dumps can work here. CriuError if CRIU cannot tell."""
    return await Criu(criu).check_feature(FEATURE)


async def run_criu(
    words: Sequence[str], pass_fds: Sequence[int] = (), started: Callable[[], None] = lambda: None
) -> int:
    """Run CRIU, on an images directory of its own (-D), to its end; its exit code. It is never ended by us: it may hold
    a frozen process. What is left of one that was killed is."""
    process = await trio.lowlevel.open_process(
        list(words),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=pass_fds,
    )
    started()
    try:
        code = await process.wait()
        if code:
            await trio.to_thread.run_sync(end_orphans, process.pid, {words[1], words[words.index("-D") + 1]}.issubset)
        return code
    finally:
        with trio.CancelScope(shield=True), trio.move_on_after(PATIENCE):
            await process.wait()


#: Told each round that ended well, and the seconds that a dump now would freeze the process, if that can be told.
Told = Callable[[RoundFigures, float | None], None]


async def run_rounds(
    one: Callable[[], Awaitable[RoundFigures | str]], convergence: Convergence, view: CacheView, told: Told
) -> str:
    """Have rounds until another does not pay, or one fails (a str); why. LinkLost or SessionAborted if the cache has
    given up, RestoreFailed if the restore has that waits there: a dump would freeze the process for nothing."""
    reason: str | None = None
    async with flat_nursery() as nursery:

        async def given_up() -> None:
            await view.wait_for(lambda: bool(view.restore_failures))
            raise RestoreFailed(f"criu restore there failed, so the process stays here: {view.restore_failures[-1]}")

        nursery.start_soon(given_up)
        while (reason := reason or convergence.reason_to_stop(trio.current_time())) is None:
            figures = await one()
            if isinstance(figures, str):
                reason = figures
            else:
                convergence.add(figures)
                told(figures, convergence.predicted(trio.current_time()))
        nursery.cancel_scope.cancel()
    return reason


class Rounds:
    """The rounds of one migration of the tree under `pid`."""

    def __init__(self, ingest: RoundsIngest, criu: str, pid: int, options: Sequence[str]) -> None:
        self._ingest, self._criu, self._pid, self._options = ingest, criu, pid, options

    async def pre_dump(self, convergence: Convergence, view: CacheView, told: Told) -> str:
        """Pre-dump until it does not pay any more; why. What `run_rounds` raises."""
        return await run_rounds(self._pre_dump, convergence, view, told)

    async def _pre_dump(self) -> RoundFigures | str:
        """One round; its figures, or why it failed."""
        began = trio.current_time()
        self._ingest.prepare()
        await self._ingest.begin()
        log = self._ingest.directory / "pre-dump.log"
        code = await self._run("pre-dump", "-o", log.name)
        good = code == 0 and self._ingest.server.whole
        size, pages = self._ingest.round_size, self._ingest.pages
        await self._ingest.end(good=good)
        if good:
            return RoundFigures(
                size, began, trio.current_time(), skipped=pages.skipped if pages else 0, zero=pages.zero if pages else 0
            )
        reason = cause(log.read_text(errors="replace")) if log.exists() else None
        reason = reason or (f"exit code {code}" if code else "not all of its pages came")
        _log.warning(
            "a pre-dump failed: everything is dumped at once", reason=reason, pages=self._ingest.server.failure
        )
        return "a pre-dump failed"

    async def dump(self, *options: str) -> int:
        """The dump; CRIU's exit code."""
        self._ingest.prepare()
        await self._ingest.begin(dump=True)
        try:
            return await self._run("dump", *options)
        finally:
            self._ingest.close()

    async def _run(self, action: str, *options: str) -> int:
        ours, theirs = socket.socketpair()
        with trio.socket.from_stdlib_socket(ours) as sock, theirs:
            async with flat_nursery() as nursery:
                nursery.start_soon(self._ingest.take, sock)
                code = await run_criu(self._words(action, theirs.fileno(), options), [theirs.fileno()])
                theirs.close()  # what is left of the conversation ends
        return code

    def _words(self, action: str, fd: int, options: Sequence[str]) -> list[str]:
        ingest = self._ingest
        parent = ["--prev-images-dir", f"../{ingest.parent.name}"] if ingest.parent else []
        pages = ["--track-mem", *parent, "--page-server", "--ps-socket", str(fd)]
        given = self._options if action == "dump" else for_pre_dump(self._options)
        return [self._criu, action, "-t", str(self._pid), "-D", str(ingest.directory), *pages, *options, *given]
