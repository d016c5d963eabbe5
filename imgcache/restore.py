"""`criu restore` run by the cache itself, for a source that asks for it (`imgproxy migrate`).

CRIU runs detached and in a session of its own: neither the end of the cache nor a signal to its terminal reaches the
process that it restores. Before the commit a failure goes back to the source, which then goes on; after it there is
only this copy, so the restore is tried again from the same images.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import structlog
import trio

from imgcache.hook import SCRIPT
from imgcache.session import Session
from imgnode.criu import cause
from imgnode.criu_options import check_restore
from imgwire.errors import UsageError
from imgwire.states import SessionState

#: Restores tried after the commit before it is left to a person.
ATTEMPTS_AFTER_COMMIT = 5

_log = structlog.get_logger()


async def restore_when_asked(session: Session, criu: str, *, allowed: bool) -> None:
    """Wait until the source asks for a restore, then run it. Returns when the process runs or cannot be helped."""
    await session.changes.wait_until(lambda: session.restore_options is not None)
    options = session.restore_options or ()
    try:
        if not allowed:
            raise UsageError("this cache does not run restores: start it with --allow-restore")
        check_restore(options)
    except UsageError as error:
        session.abort(str(error))
        return
    await _restore_once(session, [criu, "restore", *_own_options(session), *options])
    for _ in range(ATTEMPTS_AFTER_COMMIT):
        # One that failed before the commit is the source's to judge; it may just then have committed.
        await session.changes.wait_until(lambda: session.over or session.state is SessionState.COMMITTED)
        if session.over:
            return
        await _restore_once(session, [criu, "restore", *_own_options(session), *options])
    _log.error("committed, but every restore failed: restore it by hand", directory=str(session.directory))


def _own_options(session: Session) -> list[str]:
    directory = str(session.directory)
    hook = session.directory.parent / SCRIPT
    return ["--stream", "-D", directory, "-d", "-o", "restore.log", "--action-script", str(hook)]


async def _restore_once(session: Session, command: Sequence[str]) -> None:
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
    code = await process.wait()
    await session.changes.wait_until(lambda: session.attempt is None)
    if code != 0 and session.failures == failures and not session.over:  # it never came as far as its socket
        session.restore_failed(_reason(session.directory / "restore.log", code))


def _reason(log: Path, code: int) -> str:
    text = log.read_text(errors="replace") if log.exists() else ""
    return cause(text) or f"criu restore ended with exit code {code} before it asked for an image"
