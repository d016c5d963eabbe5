"""The action script as a file in the images directory, for as long as its program runs."""

import os
from pathlib import Path

import trio


async def action_script(
    path: Path, text: str, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
) -> None:
    """Keep an executable file with this text at `path` until cancelled. One that was left behind is replaced."""
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o700)
    with os.fdopen(fd, "w") as file:
        file.write(text)
    try:
        task_status.started()
        await trio.sleep_forever()
    finally:
        path.unlink(missing_ok=True)
