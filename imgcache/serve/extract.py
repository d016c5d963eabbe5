"""A session's images as files in a directory: for `imgcache extract` and the drop-in streamer.

The directory appears whole or not at all: images are written under a temporary name beside it and renamed at the end.
A directory that exists and is empty is filled instead (its owner may have chosen its place and rights).
"""

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from imgcache.arena import Extent
from imgcache.store import ImageStore
from imgwire.errors import UsageError
from imgwire.names import LAST_IMAGE
from imgwire.states import SessionState

if TYPE_CHECKING:  # the drop-in streamer, which has no sessions, need not wait for what they load
    from imgcache.session import Session

_READY = (SessionState.COMPLETE, SessionState.RESTORED, SessionState.COMMITTED)


async def extract(session: "Session", directory: Path) -> int:
    """Write the images of a complete session to `directory`; return how many."""
    if session.state not in _READY or session.revived:
        raise UsageError(f"session {session.name} is {session.state}: its images are not all here")
    if session.following is not None:
        raise UsageError(f"session {session.name} has memory that only follows the process (migrate --lazy)")
    with session.reading():
        await write_images(session.store, directory)
    return len(session.store)


async def write_images(store: ImageStore, directory: Path) -> None:
    """Write all images to `directory`, which must be missing or empty."""
    await trio.to_thread.run_sync(_write_all, store, directory)


async def write_images_into(store: ImageStore, directory: Path) -> None:
    """Write all images to `directory`, beside what else is there, over files of their names.

    The last one is inventory.img, without which no restore begins.
    """
    await trio.to_thread.run_sync(_write_into, store, directory)


def _write_into(store: ImageStore, directory: Path) -> None:
    staging = Path(tempfile.mkdtemp(prefix=".extract-", dir=directory))
    try:
        for image in store:
            write_image(staging / image.name, list(image.extents()))
        for image in sorted(store, key=lambda image: image.name == LAST_IMAGE):
            (staging / image.name).replace(directory / image.name)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_all(store: ImageStore, directory: Path) -> None:
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(f"{directory}: is not an empty directory")
    staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        for image in store:
            write_image(staging / image.name, list(image.extents()))
        if directory.exists():
            for path in staging.iterdir():
                path.rename(directory / path.name)
        else:
            staging.rename(directory)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def write_image(path: Path, extents: list[Extent]) -> None:
    """Write these bytes to a new file."""
    with path.open("xb") as file:
        for extent in extents:
            offset, left = extent.offset, extent.length
            while left:
                moved = os.sendfile(file.fileno(), extent.fd, offset, left)
                if not moved:
                    raise OSError(f"{path}: the stored image ends before its size")
                offset += moved
                left -= moved
