"""`criu restore` run by the cache itself, for a source that asks for it (`imgproxy migrate`).

CRIU runs detached and in a session of its own: neither the end of the cache nor a signal to its terminal reaches the
process that it restores. Before the commit a failure goes back to the source, which then goes on; after it there is
only this copy, so the restore is tried again from the same images.
"""

import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import structlog
import trio

from imgcache.hook import SCRIPT
from imgcache.lazy_memory import Memory
from imgcache.serve.lazy_pages import LazyPages
from imgcache.session import Session
from imgnode import users_script
from imgnode.criu import Criu, CriuError, cause
from imgnode.criu_options import check_restore
from imgnode.nursery import flat_nursery
from imgwire.errors import UsageError
from imgwire.states import RUNS_THERE, SessionState

#: Restores tried after the commit before it is left to a person.
ATTEMPTS_AFTER_COMMIT = 5
#: Seconds for a restore to end whose session is over, to tell the operator's action script if it has failed.
ENDING = 10.0
#: What post-copy needs of the kernel here, as CRIU calls it.
LAZY_FEATURE = "uffd-noncoop"

_log = structlog.get_logger()


async def restore_when_asked(session: Session, criu: str, *, allowed: bool, script: Path | None = None) -> None:
    """Wait until the source asks for a restore, then run it. Returns when the process runs or cannot be helped.
    `script`: an action script of the operator's, which is told of a restore that failed."""
    await session.changes.wait_until(lambda: session.restore_options is not None)
    options = session.restore_options or ()
    try:
        if not allowed:
            raise UsageError("this cache does not run restores: start it with --allow-restore")
        check_restore(options)
        if session.memory is not None and not await Criu(criu).check_feature(LAZY_FEATURE):
            raise UsageError("this node's kernel cannot let memory follow a process (userfaultfd): leave --lazy out")
    except (UsageError, CriuError) as error:
        session.abort(str(error))
        return
    command = [criu, "restore", *_own_options(session), *options]
    restore = partial(_restore_once, session, command, script)
    if session.memory is not None:
        restore = partial(_restore_lazily, session, session.memory, criu, command, script)
    await restore()
    for _ in range(ATTEMPTS_AFTER_COMMIT):
        # One that failed before the commit is the source's to judge; it may just then have committed.
        await session.changes.wait_until(lambda: session.over or session.state is SessionState.COMMITTED)
        if session.over:
            return
        await restore()
    _log.error("committed, but every restore failed: restore it by hand", directory=str(session.directory))


def _own_options(session: Session) -> list[str]:
    directory = str(session.directory)
    hook = session.directory.parent / SCRIPT
    return ["--stream", "-D", directory, "-d", "-o", "restore.log", "--action-script", str(hook)]


async def _restore_lazily(
    session: Session, memory: Memory, criu: str, command: Sequence[str], script: Path | None
) -> None:
    """A restore whose memory follows. Once it was told to run there is no second one: it may have run."""
    lazy = LazyPages(session, memory, criu, session.journal_directory)
    async with flat_nursery() as nursery:

        async def follow(*, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
            try:
                await lazy.run(task_status=task_status)
            finally:
                _conclude(session, lazy.verdict)

        async def dropped() -> None:
            await session.changes.wait_until(lambda: session.dropped)
            nursery.cancel_scope.cancel()

        await nursery.start(follow)
        nursery.start_soon(dropped)
        session.guard = lazy.guard
        await _restore_once(session, [*command, "--lazy-pages"], script)
        if session.state in RUNS_THERE:
            await lazy.ended()
        nursery.cancel_scope.cancel()
    session.guard = None


def _conclude(session: Session, verdict: str) -> None:
    if verdict == "over":
        session.whole()
    elif session.released:
        session.lose(verdict)
    elif session.attempt is not None:
        session.restore_failed(verdict)


async def _restore_once(session: Session, command: Sequence[str], script: Path | None) -> None:
    failures = session.failures
    try:
        process = await trio.lowlevel.open_process(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        session.restore_failed(f"{command[0]}: {error.strerror}")
        return
    async with _undone_if_it_fails(process, script, session.directory):
        code = await process.wait()
    await session.changes.wait_until(lambda: session.attempt is None)
    if code != 0 and session.failures == failures and not session.over:  # it never came as far as its socket
        session.restore_failed(_reason(session.directory / "restore.log", code))


@asynccontextmanager
async def _undone_if_it_fails(process: trio.Process, script: Path | None, images: Path) -> AsyncIterator[None]:
    """If the restore fails, have the operator's action script undo what it did for it; also if the session is over
    before that."""
    try:
        yield
    finally:
        if script is not None:
            with trio.CancelScope(shield=True), trio.move_on_after(ENDING):
                if await process.wait() != 0:
                    await users_script.undo(script, users_script.RESTORE_FAILED, images)


def _reason(log: Path, code: int) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return cause(text) or f"criu restore ended with exit code {code} before it asked for an image"
