"""`capture`: the images of one `criu dump --stream`, and external files beside them, into the shards.

The socket comes first: the caller waits for it to start CRIU, and what is loaded here loads while CRIU starts.

With `criu dump --leave-running` the program may run on while the last of its pages are still in a pipe; nothing at this
end of the pipe can prevent that. `imgproxy` can, by its action script.
"""

import secrets

import trio

from criu_image_streamer.cli import Options
from criu_image_streamer.descriptors import ShardSink, sinks
from criu_image_streamer.progress import CHECKPOINT_STARTED, SOCKET_READY, Progress
from imgnode.nursery import flat_nursery
from imgnode.unix import listening
from imgwire.errors import RemoteProtocolError

SOCKET = "streamer-capture.sock"

#: What `criu cpuinfo dump --stream` sends, alone, without stopping a process.
CPU_IMAGE = "cpuinfo.img"


async def capture(options: Options, progress: Progress) -> None:
    """Take one dump. RemoteProtocolError if it did not come to its end."""
    options.images_dir.mkdir(parents=True, exist_ok=True)
    with sinks(options.shard_fds) as shards:
        async with listening(options.images_dir / SOCKET) as listener:
            progress.say(SOCKET_READY)
            await _take(options, progress, shards, listener)


async def _take(
    options: Options, progress: Progress, shards: list[ShardSink], listener: trio.socket.SocketType
) -> None:
    from criu_image_streamer.external import take_external
    from criu_image_streamer.output import ShardedOutput
    from imgnode import logs
    from imgproxy.compression import Compression
    from imgproxy.ingest.stream import StreamIngest
    from imgproxy.sender import ImageSender
    from imgwire.messages import ImagesComplete
    from transform.chain import Chain

    logs.configure(0)

    started = False

    def on_image(name: str) -> None:
        nonlocal started
        if not started and name not in options.external and name != CPU_IMAGE:
            started = True
            out.started = trio.current_time()
            progress.say(CHECKPOINT_STARTED)

    out = ShardedOutput(options.shard_fds, shards, secrets.token_hex(16), on_image)
    sender = ImageSender(out, Chain([]), Compression("off"))
    ingest = StreamIngest(sender, lambda: None)
    async with flat_nursery() as nursery:
        nursery.start_soon(out.run)
        async with flat_nursery() as inputs:
            for name, fd in options.external.items():
                inputs.start_soon(take_external, sender, name, fd)
            await ingest.accept(listener, lambda _pid: True)
            only_cpu = set(sender.images) - set(options.external) == {CPU_IMAGE}
            if not ingest.complete and not only_cpu:
                raise RemoteProtocolError(
                    "criu dump ended before its last image: it failed, and its log has the reason"
                )
        await out.send(ImagesComplete(len(sender.images), sender.size))
        await out.finish()
    progress.figures(out.figures())
