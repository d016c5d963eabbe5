"""A TLS connection that moves a megabyte at a time.

`trio.SSLStream` hands out one TLS record (16 KiB) per call, with a checkpoint and a system call around each: receiving
1 GiB took 5 to 6 CPU-seconds. Here a read takes what the socket has, then decrypts all whole records of it in one go.
The handshake differs in one thing, too: when it fails, the peer is told why (an alert) before the connection is closed.
"""

import ssl

import trio

#: What one read asks of the socket: what a receive buffer of a fast link holds.
NETWORK_READ = 1 << 20
#: Most plain bytes encrypted before they are sent.
CHUNK = 1 << 18
#: Seconds for the peer to take our reason for refusing it, before the connection is closed.
ALERT_GRACE = 1.0


class TlsStream(trio.abc.Stream):
    """TLS over a socket. One task at a time may send, one may receive. Errors are trio's, the SSLError their cause."""

    def __init__(self, transport: trio.SocketStream, context: ssl.SSLContext, server_hostname: str | None) -> None:
        self._transport = transport
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        server_side = server_hostname is None
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side, server_hostname)

    async def do_handshake(self) -> None:
        """Agree on keys and check the peer. If it fails the peer is told and the connection is closed."""
        try:
            await self._shake_hands()
        except trio.BrokenResourceError:
            with trio.move_on_after(ALERT_GRACE):
                await self._part()
            await trio.aclose_forcefully(self._transport)
            raise
        except BaseException:
            await trio.aclose_forcefully(self._transport)
            raise

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """1 to `max_bytes` bytes, b"" at the end of the conversation."""
        wanted = max_bytes or NETWORK_READ
        while True:
            try:
                data, ended = self._decrypt(wanted)
            except ssl.SSLError as error:
                raise trio.BrokenResourceError("TLS failed") from error
            if data or ended:
                await trio.lowlevel.checkpoint_if_cancelled()
                return data
            await self._fetch()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send all of `data`."""
        view = memoryview(data)
        for start in range(0, len(view), CHUNK):
            try:
                self._tls.write(view[start : start + CHUNK])
            except ssl.SSLError as error:
                raise trio.BrokenResourceError("TLS failed") from error
            await self._flush()

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket takes bytes."""
        await self._transport.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close; the layers above have said goodbye already, so TLS does not."""
        await self._transport.aclose()

    async def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fetch()
            except (ssl.SSLError, ssl.CertificateError) as error:
                raise trio.BrokenResourceError("the TLS handshake failed") from error
            else:
                await self._flush()
                return

    def _decrypt(self, wanted: int) -> tuple[bytes, bool]:
        """What is here of whole records, up to `wanted` bytes, and whether the peer has ended the conversation."""
        parts: list[bytes] = []
        while wanted > 0:
            try:
                part = self._tls.read(wanted)
            except ssl.SSLWantReadError:
                break
            except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                return b"".join(parts), not parts
            if not part:
                return b"".join(parts), not parts
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts), False

    async def _fetch(self) -> None:
        data = await self._transport.receive_some(NETWORK_READ)
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()

    async def _flush(self) -> None:
        if self._outgoing.pending:
            await self._transport.send_all(self._outgoing.read())

    async def _part(self) -> None:
        """Send the alert, then take what the peer still sends: closing before that would reset the connection."""
        try:
            await self._flush()
            await self._transport.send_eof()
            while await self._transport.receive_some():
                continue
        except trio.BrokenResourceError:
            return  # the peer has gone first


async def secure(
    transport: trio.SocketStream, context: ssl.SSLContext, server_hostname: str | None = None
) -> TlsStream:
    """Do the handshake on `transport`: as the client of `server_hostname`, or as a server without one.

    If it fails, trio.BrokenResourceError for `describe_tls_error`, and `transport` is closed. In TLS 1.3 a client's
    handshake ends before the server has judged its certificate: a refusal comes with the client's first read.
    """
    stream = TlsStream(transport, context, server_hostname)
    await stream.do_handshake()
    return stream
