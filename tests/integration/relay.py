"""A relay between proxy and cache that does to the connection what networks do: cut it, damage it, stay dead."""

import socket
import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

#: The other end learns of the cut by a reset, at once, and loses what is on the way.
_RESET = struct.pack("ii", 1, 0)


class Relay:
    """Forwards connections to `target` (HOST:PORT). Offsets count bytes from proxy to cache, over all connections."""

    def __init__(self, target: str, *, cuts: Sequence[int], damages: Sequence[int], stays_dead: bool) -> None:
        self.address = ""
        self.cuts_made = 0
        self.forwarded = 0  #: bytes from proxy to cache
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._cuts = sorted(cuts)
        self._damages = set(damages)
        self._stays_dead = stays_dead
        self._stopped = trio.CancelScope()

    async def run(self, listener: trio.SocketListener) -> None:
        """Serve until cancelled."""
        with self._stopped:
            async with trio.open_nursery() as nursery:
                while True:
                    stream = await listener.accept()
                    nursery.start_soon(self._connection, stream)

    async def _connection(self, proxy: trio.SocketStream) -> None:
        cache = await trio.open_tcp_stream(*self._target)
        async with proxy, cache, trio.open_nursery() as nursery:
            nursery.start_soon(self._back, cache, proxy, nursery.cancel_scope)
            if not await self._forth(proxy, cache):
                for stream in (proxy, cache):
                    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                    stream.socket.close()
                self.cuts_made += 1
                if self._stays_dead and not self._cuts:
                    self._stopped.cancel()
            nursery.cancel_scope.cancel()

    async def _forth(self, proxy: trio.SocketStream, cache: trio.SocketStream) -> bool:
        """Forward until one side ends (True) or it is time for a cut (False)."""
        try:
            while data := await proxy.receive_some(1 << 16):
                room = self._cuts[0] - self.forwarded if self._cuts else len(data)
                await cache.send_all(self._damaged(data[:room]))
                self.forwarded += min(room, len(data))
                if self._cuts and self.forwarded >= self._cuts[0]:
                    del self._cuts[0]
                    return False
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return True
        return True

    def _damaged(self, data: bytes) -> bytes:
        here = range(self.forwarded, self.forwarded + len(data))
        changed = bytearray(data)
        for offset in self._damages & set(here):
            changed[offset - self.forwarded] ^= 0x55
        return bytes(changed)

    async def _back(self, cache: trio.SocketStream, proxy: trio.SocketStream, scope: trio.CancelScope) -> None:
        try:
            while data := await cache.receive_some(1 << 16):
                await proxy.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def relaying(
    target: str, *, cuts: Sequence[int] = (), damages: Sequence[int] = (), stays_dead: bool = False
) -> AsyncIterator[Relay]:
    """A relay to `target` for the time of the block."""
    relay = Relay(target, cuts=cuts, damages=damages, stays_dead=stays_dead)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    relay.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(_run, relay, listener)
        yield relay
        nursery.cancel_scope.cancel()


async def _run(relay: Relay, listener: trio.SocketListener) -> None:
    await relay.run(listener)
    await listener.aclose()  # from now on connections are refused
