"""The source's end of the link: connects, greets, and after a cut connects again with growing pauses."""

import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace

import structlog
import trio

from imgnode.addresses import Address, DescriptorAddress, TcpAddress, UnixAddress
from imgnode.channel import Channel
from imgnode.greeting import GREETING_TIMEOUT, SessionRefused, open_session, resolve_session
from imgnode.tcp_peer import is_trusted
from imgnode.tls_stream import secure
from imgnode.transport import DescriptorTransport, SocketTransport, StreamTransport, Transport
from imgproxy.source import CacheView
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.link import LinkConnection
from imgwire.messages import Hello, Resolve, Welcome

#: Pauses between attempts to connect, in seconds: doubled from the first to the last.
FIRST_PAUSE, LAST_PAUSE = 0.1, 5.0

_log = structlog.get_logger()


class CannotConnect(Exception):
    """No connection to the cache; the text says where and why."""


@dataclass(frozen=True)
class Dialer:
    """Makes connections to one address."""

    address: Address
    tls: ssl.SSLContext | None = None

    @property
    def splices(self) -> bool:
        """Whether page payload can go out by splice."""
        return self.tls is None

    @property
    def redials(self) -> bool:
        """Whether a connection can be made again after a cut."""
        return not isinstance(self.address, DescriptorAddress)

    async def connect(self) -> Transport:
        """A connection, or CannotConnect."""
        try:
            with trio.fail_after(GREETING_TIMEOUT):
                return await self._connect()
        except trio.TooSlowError:
            raise CannotConnect(f"{self.address}: no answer within {GREETING_TIMEOUT:.0f} s") from None
        except (OSError, trio.BrokenResourceError, ssl.SSLError) as error:
            raise CannotConnect(f"{self.address}: {self._why(error)}") from error

    async def greet(self, transport: Transport, hello: Hello) -> tuple[LinkConnection, Welcome]:
        """Introduce the session. CannotConnect, SessionRefused, RemoteProtocolError."""
        try:
            return await open_session(transport, hello)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError) as error:
            raise CannotConnect(f"{self.address}: {self._why(error)}") from error

    async def resolve(self, resolve: Resolve) -> str:
        """Tell the cache how a session ended; return its state there. CannotConnect, SessionRefused."""
        transport = await self.connect()
        try:
            with trio.fail_after(GREETING_TIMEOUT):
                return await resolve_session(transport, resolve)
        except (trio.BrokenResourceError, trio.TooSlowError, RemoteProtocolError) as error:
            raise CannotConnect(f"{self.address}: {error or 'no answer'}") from error
        finally:
            with trio.CancelScope(shield=True):
                await transport.aclose()

    async def _connect(self) -> Transport:
        match self.address:
            case TcpAddress(host, port):
                stream = await trio.open_tcp_stream(host, port)
                if self.tls is not None:
                    return StreamTransport(await secure(stream, self.tls, host))
                if not is_trusted(stream.socket):
                    await stream.aclose()
                    raise OSError("what listens there belongs to another user of this machine")
                return SocketTransport(stream.socket)
            case UnixAddress(path):
                return SocketTransport((await trio.open_unix_socket(path)).socket)
            case DescriptorAddress(reader, writer):
                return DescriptorTransport(reader, writer)
            case _:
                raise UsageError(f"{self.address}: is not something to connect to")

    def _why(self, error: BaseException) -> str:
        from imgnode.tls import describe_tls_error  # when something went wrong only: it is slow to import

        if self.tls is not None and not isinstance(error, OSError | ssl.SSLError):
            return describe_tls_error(error)
        if isinstance(error, ssl.SSLError):
            return describe_tls_error(error)
        if isinstance(error, trio.BrokenResourceError) and isinstance(self.address, TcpAddress):
            said = str(error) or "the other side closed the connection"
            return f"{said}: if it was started with the --tls options, give them here too"
        errors = [error, *_causes(error)]
        if any(isinstance(one, ConnectionRefusedError | FileNotFoundError) for one in errors):
            return "nothing listens there; is imgcache running?"
        return str(errors[-1]) or "it does not answer as an imgcache does"


def _causes(error: BaseException) -> tuple[BaseException, ...]:
    """What made each attempt to connect fail, where there were attempts."""
    cause = error.__cause__
    return cause.exceptions if isinstance(cause, BaseExceptionGroup) else (cause,) if cause else ()


class Link:
    """Keeps one session's channel connected."""

    def __init__(self, dialer: Dialer, channel: Channel, hello: Hello, view: CacheView, *, patience: float) -> None:
        self._dialer, self._channel, self._hello, self._view = dialer, channel, hello, view
        self._patience = patience
        self.on_reconnect: Callable[[], None] = lambda: None
        self.keeps_trying: Callable[[], bool] = lambda: False  #: whether even patience must not end it (committed)

    async def run(self, *, task_status: "trio.TaskStatus[Welcome]") -> None:
        """Open the session (the first failure is final), then carry it until the cache says goodbye or is lost."""
        connection, transport, welcome = await self._greet(self._hello)
        task_status.started(welcome)
        hello = replace(self._hello, resume=True, takeover=False, facts={})
        while True:
            if await self._channel.run(transport, connection, welcome.received, self._view):
                return
            _log.warning("the link was cut", to=str(self._dialer.address))
            if not self._dialer.redials:
                self._view.lose(f"{self._dialer.address}: the connection has ended and cannot be made again")
                return
            try:
                connection, transport, welcome = await self._reconnect(hello)
            except (CannotConnect, SessionRefused) as error:
                self._view.lose(str(error))
                return
            self.on_reconnect()
            _log.info("the link is back", to=str(self._dialer.address))

    async def _greet(self, hello: Hello) -> tuple[LinkConnection, Transport, Welcome]:
        transport = await self._dialer.connect()
        try:
            connection, welcome = await self._dialer.greet(transport, hello)
        except BaseException:
            with trio.CancelScope(shield=True):
                await transport.aclose()
            raise
        self._channel.set_window(welcome.window)
        return connection, transport, welcome

    async def _reconnect(self, hello: Hello) -> tuple[LinkConnection, Transport, Welcome]:
        pause, give_up_at = FIRST_PAUSE, trio.current_time() + self._patience
        while True:
            try:
                return await self._greet(replace(hello, received=self._channel.received))
            except CannotConnect as error:
                if trio.current_time() >= give_up_at and not self.keeps_trying():
                    raise CannotConnect(f"cut off for {self._patience:.0f} s; {error}") from error
                await trio.sleep(pause)
                pause = min(2 * pause, LAST_PAUSE)
