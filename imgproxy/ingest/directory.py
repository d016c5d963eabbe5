"""An images directory, as `criu dump` writes it without `--stream`: a finished one, or one that is being written.

A finished one is sent like a dump. Of one that is being written each image goes out when CRIU closes it, so that little
is left to send when the last is written; that one, the inventory, waits until all others are seen to be what was sent.
"""

import os
from pathlib import Path

import trio

from imgnode.inotify import ClosedFiles
from imgnode.nursery import flat_nursery
from imgnode.pipes import Pipe, splice_file
from imgproxy.sender import ImageSender
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.names import LAST_IMAGE, check_image_name
from transform.errors import TransformError

#: Bytes put into the pipe at a time.
CHUNK = 1 << 20

_Version = tuple[int, int, int]  # of a file: inode, bytes, time of the last change in ns


def find_images(directory: Path) -> list[Path]:
    """The images in a directory, the inventory last, as in a dump. UsageError if it holds no complete dump."""
    if (directory / "parent").is_symlink():
        raise UsageError(f"{directory}: is an incremental dump (it has a parent); only complete ones can be sent")
    try:
        return _listed(directory)
    except RemoteProtocolError as error:
        raise UsageError(f"{directory}: {error}") from error


def _listed(directory: Path) -> list[Path]:
    """RemoteProtocolError for names that are none, or without the last."""
    images = [path for path in directory.iterdir() if path.name.endswith(".img") and path.is_file()]
    if not any(path.name == LAST_IMAGE for path in images):
        raise RemoteProtocolError(f"there is no {LAST_IMAGE}, so no finished dump")
    for path in images:
        check_image_name(path.name)
    return sorted(images, key=lambda path: (path.name == LAST_IMAGE, path.name))


async def send_images(directory: Path, sender: ImageSender) -> None:
    """Send every image of a finished dump."""
    for path in find_images(directory):
        await _send_image(path, sender)


class WrittenImages:
    """The images that a dump writes into a directory, from now on."""

    def __init__(self, directory: Path, sender: ImageSender) -> None:
        self._directory, self._sender = directory, sender
        self._closed = ClosedFiles(directory)
        self._sent: dict[str, _Version] = {}
        self._sending = trio.Lock()
        self._stopped = False
        self._waiting = trio.CancelScope()  # of `follow`, while it has nothing to do
        self._failure: RemoteProtocolError | TransformError | None = None

    async def follow(self) -> None:
        """Send each image as it is closed, until `stop`. What goes wrong with one is for `finish`, which is awaited
        when CRIU can be told."""
        try:
            while not self._stopped:
                with trio.CancelScope() as self._waiting:
                    await self._closed.wait()
                async with self._sending:
                    await self._send_closed()
        except (RemoteProtocolError, TransformError) as error:
            self._failure = error

    def stop(self) -> None:
        """Nothing more is written, or it does not matter: `follow` ends, behind the images that are closed by now."""
        self._stopped = True
        self._waiting.cancel()

    async def finish(self) -> None:
        """All is written: send what has not been sent, the inventory last. RemoteProtocolError, TransformError."""
        self.stop()
        async with self._sending:
            if self._failure:
                raise self._failure
            await self._send_closed()
            for path in _listed(self._directory):
                if path.name not in self._sent:
                    await self._send(path)
            for name, version in self._sent.items():
                if not _is_still(self._directory / name, version):
                    raise _changed(name)

    def close(self) -> None:
        """Look no longer."""
        self._closed.close()

    async def _send_closed(self) -> None:
        for name in self._closed.take():
            if name in self._sent:
                raise _changed(name)
            if name.endswith(".img") and name != LAST_IMAGE:
                await self._send(self._directory / check_image_name(name))

    async def _send(self, path: Path) -> None:
        self._sent[path.name] = await _send_image(path, self._sender)


def _changed(name: str) -> RemoteProtocolError:
    return RemoteProtocolError(
        f"{name} was changed after it had been sent: dump again, with nothing else at work there"
    )


def _is_still(path: Path, version: _Version) -> bool:
    try:
        return _version(path.stat()) == version
    except FileNotFoundError:
        return False


def _version(status: os.stat_result) -> _Version:
    return status.st_ino, status.st_size, status.st_mtime_ns


async def _send_image(path: Path, sender: ImageSender) -> _Version:
    """Send it as it is now; which one that was."""
    pipe = Pipe()
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        status = os.fstat(file)
        async with flat_nursery() as nursery:
            nursery.start_soon(_feed, file, status.st_size, pipe)
            await sender.send_from_pipe(path.name, pipe.reader)
        return _version(status)
    finally:
        os.close(file)
        pipe.close()


async def _feed(file: int, size: int, pipe: Pipe) -> None:
    offset = 0
    while offset < size:
        part = min(CHUNK, size - offset)
        await splice_file(file, offset, part, pipe.writer)
        offset += part
    pipe.close_writer()
    await trio.lowlevel.checkpoint()
