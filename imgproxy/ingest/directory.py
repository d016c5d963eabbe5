"""An images directory, as `criu dump` writes it without `--stream`, sent like a dump."""

import os
from pathlib import Path

import trio

from imgnode.nursery import flat_nursery
from imgnode.pipes import Pipe, splice_file
from imgproxy.sender import ImageSender
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.names import LAST_IMAGE, check_image_name

#: Bytes put into the pipe at a time.
CHUNK = 1 << 20


def find_images(directory: Path, *, of_round: bool = False) -> list[Path]:
    """The images in a directory, the inventory last, as in a dump. UsageError if it holds no complete dump.

    `of_round`: its pages, which may refer to a round before, are elsewhere.
    """
    if not of_round and (directory / "parent").is_symlink():
        raise UsageError(f"{directory}: is an incremental dump (it has a parent); only complete ones can be sent")
    images = [path for path in directory.iterdir() if path.name.endswith(".img") and path.is_file()]
    if not any(path.name == LAST_IMAGE for path in images):
        raise UsageError(f"{directory}: has no {LAST_IMAGE}, so it holds no finished dump")
    try:
        for path in images:
            check_image_name(path.name)
    except RemoteProtocolError as error:
        raise UsageError(f"{directory}: {error}") from error
    return sorted(images, key=lambda path: (path.name == LAST_IMAGE, path.name))


async def send_images(directory: Path, sender: ImageSender, *, of_round: bool = False) -> None:
    """Send every image of the directory."""
    for path in find_images(directory, of_round=of_round):
        await _send_image(path, sender)


async def _send_image(path: Path, sender: ImageSender) -> None:
    pipe = Pipe()
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        async with flat_nursery() as nursery:
            nursery.start_soon(_feed, file, pipe)
            await sender.send_from_pipe(path.name, pipe.reader)
    finally:
        os.close(file)
        pipe.close()


async def _feed(file: int, pipe: Pipe) -> None:
    offset, size = 0, os.fstat(file).st_size
    while offset < size:
        part = min(CHUNK, size - offset)
        await splice_file(file, offset, part, pipe.writer)
        offset += part
    pipe.close_writer()
    await trio.lowlevel.checkpoint()
