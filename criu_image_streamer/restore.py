"""`serve` and `extract`: a checkpoint out of its shards, for `criu restore --stream` or as files in a directory.

CRIU reads images in another order than it writes them, so all must be here before the first is served. Those that it
has read are released, as far as they are ours: a shard that is a file is never changed.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from criu_image_streamer.assembly import Assembly
from criu_image_streamer.cli import Options
from criu_image_streamer.descriptors import sources
from criu_image_streamer.external import ExternalOutput
from criu_image_streamer.progress import SOCKET_READY, Progress, ShardFigures
from criu_image_streamer.shards import read_shards
from imgcache.arena import Arena, MemoryBudget, pwrite_all
from imgcache.serve.extract import write_images_into
from imgcache.serve.feed import Feed
from imgcache.store import ImageStore
from imgnode.nursery import flat_nursery
from imgnode.unix import allowed, listening, peer_credentials
from imgwire.errors import RemoteProtocolError

SOCKET = "streamer-serve.sock"
FILES_IMAGE = "files.img"

#: What `extract` holds in memory before it uses the directory's own disk: more gained nothing.
EXTRACT_MEMORY = 256 << 20


@dataclass(frozen=True)
class Checkpoint:
    """What was in the shards. External files are at their descriptors by then."""

    store: ImageStore
    figures: list[ShardFigures]
    owned: bool  #: whether all bytes are in our arena


async def serve(options: Options, progress: Progress) -> None:
    """Serve one `criu restore` until it hangs up."""
    options.images_dir.mkdir(parents=True, exist_ok=True)
    async with _loaded(options, MemoryBudget(None), None) as checkpoint:
        if options.tcp_listen_remap:
            _remap(checkpoint.store, options.tcp_listen_remap)
        progress.figures(checkpoint.figures)
        with await _accept(options.images_dir / SOCKET, progress) as sock:
            await Feed(sock, checkpoint.store, release_as_read=checkpoint.owned).run()


async def extract(options: Options, progress: Progress) -> None:
    """Write every image to the directory."""
    options.images_dir.mkdir(parents=True, exist_ok=True)
    async with _loaded(options, MemoryBudget(EXTRACT_MEMORY), options.images_dir) as checkpoint:
        await write_images_into(checkpoint.store, options.images_dir)
        progress.figures(checkpoint.figures)


@asynccontextmanager
async def _loaded(options: Options, budget: MemoryBudget, spool: Path | None) -> AsyncIterator[Checkpoint]:
    arena = Arena(budget, spool)
    try:
        external = {name: ExternalOutput(name, fd) for name, fd in options.external.items()}
        with sources(options.shard_fds) as shards:
            assembly = Assembly(arena, external)
            async with flat_nursery() as nursery:
                for output in external.values():
                    nursery.start_soon(output.run, arena)
                figures = await read_shards(options.shard_fds, shards, assembly)
                store = await trio.to_thread.run_sync(assembly.store)
        yield Checkpoint(store, figures, all(shard.owned for shard in shards))
    finally:
        arena.close()


def _remap(store: ImageStore, ports: Sequence[str]) -> None:
    """Move listening TCP ports; TransformError if nothing listens on one of them."""
    from transform.chain import Chain
    from transform.options import transforms

    image = store.find(FILES_IMAGE)
    if image is None:
        raise RemoteProtocolError(f"{FILES_IMAGE}: is not in the checkpoint, so no port can be moved in it")
    changed = Chain(transforms(tcp_listen_remap=ports)).transform(FILES_IMAGE, image.read(0, image.size))
    assert changed is not None
    extent = store.arena.reserve(len(changed), None)
    pwrite_all(extent.fd, changed, extent.offset)
    image.replace(extent)


async def _accept(path: Path, progress: Progress) -> trio.socket.SocketType:
    """The one CRIU that is served. Nobody else may connect, before or after it."""
    async with listening(path) as listener:
        progress.say(SOCKET_READY)
        while True:
            sock, _ = await listener.accept()
            if allowed(peer_credentials(sock)):
                return sock
            sock.close()
