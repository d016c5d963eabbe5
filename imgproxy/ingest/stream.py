"""`criu dump --stream` on its socket: one connection per dump, one pipe per image.

The dump may begin only with our action script in place (else its end could not be controlled): a CRIU that did not
announce itself through it is refused before it has dumped anything, and its tasks run on.
"""

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import structlog
import trio

from imgnode.nursery import flat_nursery
from imgnode.unix import allowed, close_all, listening, peer_credentials, receive_with_fds
from imgproxy.sender import ImageSender
from imgwire.errors import RemoteProtocolError
from imgwire.img_streamer import Direction, ImgStreamer, PipePassed
from imgwire.names import LAST_IMAGE

SOCKET = "streamer-capture.sock"

_log = structlog.get_logger()


class StreamIngest:
    """Takes the images of one dump and gives them to the sender."""

    begins_with = "pre-stream"  #: the action of CRIU's that comes first
    variant = ""

    def __init__(self, sender: ImageSender, changed: Callable[[], None], *, insists: bool = True) -> None:
        self._sender = sender
        self._changed = changed
        self._insists = insists  #: on the action script
        self._open_pipes = 0
        self._last_seen = False
        self.started_at: float | None = None  #: time of the first image: the tasks are frozen
        self.criu = 0

    @property
    def complete(self) -> bool:
        """Whether every image of the dump has been read to its end."""
        return self._last_seen and not self._open_pipes

    @property
    def ended_well(self) -> bool:
        """Whether the end of the dump may be taken for its success, without a word of its action script."""
        return self.complete

    def listening(self, directory: Path) -> AbstractAsyncContextManager[trio.socket.SocketType]:
        """CRIU's socket in its images directory."""
        return listening(directory / SOCKET)

    async def accept(self, listener: trio.socket.SocketType, is_announced: Callable[[int], bool]) -> None:
        """Wait for `criu dump`, take its images, return when it hangs up. Others are turned away."""
        async with flat_nursery() as nursery:
            while True:
                sock, _ = await listener.accept()
                peer = peer_credentials(sock)
                if allowed(peer) and (is_announced(peer.pid) or not self._insists):
                    break
                _log.error(
                    "a criu dump that did not announce itself was refused; its tasks run on. Run it as this user, "
                    "with --action-script imgproxy-hook",
                    pid=peer.pid,
                    uid=peer.uid,
                )
                sock.close()
            self.criu = peer.pid
            nursery.start_soon(self._refuse_others, listener)
            with sock:
                await self._take(sock)
            nursery.cancel_scope.cancel()

    async def finish(self) -> None:
        """All is sent as it is written."""
        await trio.lowlevel.checkpoint()

    async def _refuse_others(self, listener: trio.socket.SocketType) -> None:
        while True:
            sock, _ = await listener.accept()
            _log.error("a second criu dump was refused: one dump is under way", pid=peer_credentials(sock).pid)
            sock.close()

    async def _take(self, sock: trio.socket.SocketType) -> None:
        protocol = ImgStreamer(Direction.CAPTURE)
        async with flat_nursery() as nursery:
            while True:
                data, fds = await _receive(sock, protocol.wanted)
                if not data:
                    protocol.receive_eof()
                    return
                try:
                    events = protocol.receive_data(data, len(fds))
                    for event in events:
                        if isinstance(event, PipePassed):
                            self._begin(event.name)
                            nursery.start_soon(self._image, event.name, fds[0])
                except RemoteProtocolError:
                    close_all(fds)
                    raise

    def _begin(self, name: str) -> None:
        if self.started_at is None:
            self.started_at = trio.current_time()
        if name in self._sender.images:
            raise RemoteProtocolError(f"{name}: sent twice")
        self._open_pipes += 1

    async def _image(self, name: str, fd: int) -> None:
        try:
            await self._sender.send_from_pipe(name, fd)
        finally:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)
        self._ended(name)

    def _ended(self, name: str) -> None:
        self._open_pipes -= 1
        self._last_seen |= name == LAST_IMAGE
        self._changed()


async def _receive(sock: trio.socket.SocketType, size: int) -> tuple[bytes, list[int]]:
    try:
        return await receive_with_fds(sock, size)
    except ConnectionResetError:  # CRIU was killed: the same as a hang-up
        return b"", []
