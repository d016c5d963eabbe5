"""An action script of the user's, beside ours: it runs first, and we call it where CRIU has no action.

What a process needs at the destination and must not have here any more, such as an address of its own, is moved by who
runs the nodes, at moments that only CRIU knows. Our script calls theirs at each of CRIU's actions, and ends where that
fails (`imgnode.action_script`): a second `--action-script` would not do, since CRIU runs all of them, and ours would
give the process up though theirs has failed. And CRIU has no action for a dump or a restore that failed: what a script
did for one could not be undone. So then we call it ourselves, as CRIU does, with an action of our own: where its
`pre-dump` or `pre-restore` has gone well, which our script marks.
"""

import os
import subprocess
from pathlib import Path

import structlog
import trio

from imgnode.action_script import PREPARED
from imgwire.errors import UsageError

#: Actions of ours. After a crash they may come once more.
DUMP_FAILED, RESTORE_FAILED = "dump-failed", "restore-failed"
#: Seconds for a script that we call. CRIU waits without end for those that it calls.
DEADLINE = 60.0

_log = structlog.get_logger()


def check(path: Path) -> Path:
    """The path as a script names it; UsageError if it cannot be run."""
    whole = path.absolute()
    if not (whole.is_file() and os.access(whole, os.X_OK)):
        raise UsageError(f"--action-script {path}: that is no program which can be run")
    return whole


async def undo(script: Path, action: str, images: Path) -> None:
    """If it has prepared something, run it for an action of ours, to its end, also if we are stopped. What goes wrong
    is logged: nobody waits for its word."""
    prepared = images / PREPARED
    if prepared.exists():
        await _call(script, action, images)
        prepared.unlink()


async def _call(script: Path, action: str, images: Path) -> None:
    environment = {**os.environ, "CRTOOLS_SCRIPT_ACTION": action, "CRTOOLS_IMAGE_DIR": str(images)}
    failed: object = f"not over after {DEADLINE:.0f} s"
    with trio.CancelScope(shield=True), trio.move_on_after(DEADLINE):
        try:
            ended = await trio.run_process(
                [str(script)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=False, env=environment
            )
            failed = ended.returncode
        except OSError as error:
            failed = error.strerror
    if failed:
        _log.error("the action script failed", script=str(script), action=action, failed=failed)
