"""The cache as a whole: what listens, what runs, how it stops."""

import signal
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import structlog
import trio

from imgcache.archive import Archive
from imgcache.hook import SCRIPT, SOCKET, script_text
from imgcache.host import Host, HostConfig
from imgcache.link_server import LinkServer
from imgcache.original_link import OriginalLink
from imgcache.registry import Registry
from imgcache.requests import Requests
from imgcache.serve.extract import extract
from imgnode import systemd
from imgnode.action_script_file import action_script
from imgnode.addresses import Address, DescriptorAddress, TcpAddress, UnixAddress
from imgnode.command_line import Wire
from imgnode.control import serve_control
from imgnode.criu import Criu
from imgnode.greeting import GREETING_TIMEOUT
from imgnode.metrics import Metrics, metrics_server
from imgnode.nursery import flat_nursery
from imgnode.preflight import gather
from imgnode.tcp_peer import is_trusted
from imgnode.tls_stream import secure
from imgnode.transport import DescriptorTransport, SocketTransport, StreamTransport, Transport
from imgnode.unix import allowed, listening, peer_credentials
from imgwire.errors import UsageError
from imgwire.states import SessionState

#: Seconds for the sources to hear that the cache stops.
STOP_GRACE = 5.0

_log = structlog.get_logger()


@dataclass(frozen=True)
class CacheConfig:
    """Everything that was chosen on the command line."""

    directory: Path
    listen: tuple[Address, ...] = ()
    archive: Path | None = None
    tls: ssl.SSLContext | None = None
    spool: Path | None = None
    memory_limit: int | None = None
    journal: Path | None = None
    metrics: str | None = None
    insecure: bool = False  #: plain TCP even off loopback
    wire: Wire = Wire.LINK  #: what is spoken on all that is listened to
    work_directories: tuple[Path, ...] = ()  #: where else criu restore --remote looks for its socket
    host: HostConfig = field(default_factory=HostConfig)


class Links(Protocol):
    """Serves what connects, by one wire."""

    stopping: bool

    async def serve(self, transport: Transport) -> None:
        """Serve one connection until it ends."""


class CacheServer:
    """Runs until SIGTERM or SIGINT."""

    def __init__(self, config: CacheConfig) -> None:
        self._config = config
        journal = config.journal or config.directory / "journal"
        journal.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._metrics_server = metrics_server(config.metrics)
        metrics = self._metrics_server.metrics if self._metrics_server else Metrics()
        self._registry = Registry(config.directory, journal, config.spool, config.memory_limit, metrics)
        self._requests = Requests(self._registry)
        self._host = Host(self._registry, self._requests, config.host)
        self._criu = Criu(config.host.criu)
        self.addresses: list[str] = []

    async def run(self, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until a signal asks to stop."""
        async with flat_nursery() as nursery:
            links = self._links(nursery)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                await self._start(nursery, links)
                task_status.started()
                async for _ in signals:
                    break
                await self._finish_following(signals)
                await self._stop(links)
                nursery.cancel_scope.cancel()

    def _links(self, nursery: trio.Nursery) -> Links:
        if self._config.wire is Wire.CRIU:
            return OriginalLink(self._registry, self._host, nursery)
        return LinkServer(self._registry, self._host, nursery, self._facts)

    async def _start(self, nursery: trio.Nursery, links: Links) -> None:
        directory = self._config.directory
        await nursery.start(serve_control, directory / SOCKET, self._requests.handle)
        script = script_text(str(directory / SOCKET), self._config.host.action_script)
        await nursery.start(action_script, directory / SCRIPT, script)
        for session in self._registry.revive():
            _log.warning("taken up from the journal", session=session.name, state=session.state)
            await nursery.start(self._host.run, session)
        await nursery.start(self._host.take_restores, directory, None, self._config.work_directories)
        if self._metrics_server:
            await nursery.start(self._metrics_server.serve)
        for name, sockets in systemd.listen_fds().items():
            for sock in sockets:
                self._check_activated(sock, name)
                await nursery.start(self._accept, trio.socket.from_stdlib_socket(sock), links, f"socket {name}")
        for address in self._config.listen:
            await nursery.start(self._listen, address, links)
        if self._config.archive is not None:
            await nursery.start(self._serve_archive, Archive(self._config.archive))
        nursery.start_soon(systemd.watchdog)
        systemd.notify("READY=1")
        wire = "--remote" if self._config.host.remote else "--stream"
        command = f"criu restore {wire} -D {directory} --action-script {directory / SCRIPT} ..."
        _log.info("ready", listening=self.addresses, restore_with=command)

    async def _finish_following(self, signals: AsyncIterator[int]) -> None:
        """Processes whose memory is not all here would die with us: stay until it is, or until told again."""
        waiting = [session for session in self._registry.live() if session.needs_source]
        for session in waiting:
            _log.warning("its memory is not all here yet: the cache stops when it is", session=session.name)
        async with flat_nursery() as nursery:

            async def told_again() -> None:
                async for _ in signals:
                    break
                nursery.cancel_scope.cancel()

            nursery.start_soon(told_again)
            for session in waiting:
                await session.until_over()
            nursery.cancel_scope.cancel()

    async def _stop(self, links: Links) -> None:
        """Sessions whose source can go on are aborted and told so; those in doubt stay in the journal."""
        systemd.notify("STOPPING=1")
        links.stopping = True
        for session in self._registry.live():
            if session.state in (SessionState.RECEIVING, SessionState.COMPLETE) and not session.in_doubt:
                session.abort("the cache at the destination is stopping")
        with trio.move_on_after(STOP_GRACE):
            for session in self._registry:
                await session.until_told()
        await self._keep_images()
        for session in self._registry.live():
            _log.warning("stays in the journal: start the cache again", session=session.name, state=session.state)

    def _check_activated(self, sock: socket.socket, name: str) -> None:
        """What systemd passes is bound already; the rule for plain TCP is the same as for --listen."""
        if sock.family == socket.AF_UNIX or self._config.tls is not None or self._config.insecure:
            return
        address = TcpAddress(*sock.getsockname()[:2])
        if not address.is_loopback:
            raise UsageError(f"socket {name} ({address}): plain TCP off loopback; use the --tls options or --insecure")

    async def _keep_images(self) -> None:
        """Sessions that are committed and not restored yet are the only copies: put their images into files."""
        for session in self._registry.live():
            if session.state is SessionState.COMMITTED and not session.revived and session.attempt is None:
                directory = session.directory.with_name(f"{session.name}.images")
                await extract(session, directory)
                _log.error("the only images of a process are now files", session=session.name, directory=str(directory))

    async def _facts(self) -> dict[str, object]:
        host = self._config.host
        facts = await gather(
            self._criu,
            self._config.spool,
            restore_allowed=host.allow_restore,
            releases_as_read=host.release_as_read,
            image_memory=self._registry.budget.left,
        )
        return facts.to_dict()

    # ---- the link ----

    async def _listen(
        self, address: Address, links: Links, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        match address:
            case TcpAddress(host, port):
                with _as_usage_error(address):
                    listeners = await trio.open_tcp_listeners(port, host=host)
                async with flat_nursery() as nursery:
                    for listener in listeners:
                        await nursery.start(self._accept, listener.socket, links, _shown(listener.socket))
                    task_status.started()
            case UnixAddress(path):
                async with listening(path) as sock:
                    await self._accept(sock, links, str(address), task_status=task_status)
            case DescriptorAddress(reader, writer):
                task_status.started()
                await links.serve(DescriptorTransport(reader, writer))
            case _:
                raise UsageError(f"{address}: cannot listen there; read an archive with --from")

    async def _accept(
        self,
        listener: trio.socket.SocketType,
        links: Links,
        shown: str,
        *,
        task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED,
    ) -> None:
        async with flat_nursery() as nursery:
            self.addresses.append(shown)
            task_status.started()
            while True:
                sock, _ = await listener.accept()
                nursery.start_soon(self._connection, sock, links)

    async def _connection(self, sock: trio.socket.SocketType, links: Links) -> None:
        if sock.family == socket.AF_UNIX and not allowed(peer_credentials(sock)):
            _log.warning("a process of another user connected to the link", uid=peer_credentials(sock).uid)
            sock.close()
        elif sock.family == socket.AF_UNIX:
            await links.serve(SocketTransport(sock))
        elif self._config.tls is None:
            await self._plain_connection(sock, links)
        else:
            await self._tls_connection(trio.SocketStream(sock), self._config.tls, links)

    async def _plain_connection(self, sock: trio.socket.SocketType, links: Links) -> None:
        if is_trusted(sock):
            await links.serve(SocketTransport(sock))
            return
        _log.warning("a local process of another user connected to the link", peer=str(sock.getpeername()))
        sock.close()

    async def _tls_connection(self, stream: trio.SocketStream, context: ssl.SSLContext, links: Links) -> None:
        try:
            with trio.fail_after(GREETING_TIMEOUT):
                secured = await secure(stream, context)
        except (trio.BrokenResourceError, trio.TooSlowError, ssl.SSLError) as error:
            from imgnode.tls import describe_tls_error

            _log.warning("TLS with a source failed", error=describe_tls_error(error))
            return
        await links.serve(StreamTransport(secured))

    # ---- an archive ----

    async def _serve_archive(
        self, archive: Archive, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Offer the archive's session again and again: each restore takes one."""
        try:
            while True:
                session = self._registry.create(await archive.hello())
                await archive.load(session)
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await self._host.run(session)
        finally:
            archive.close()


def _shown(sock: trio.socket.SocketType) -> str:
    host, port = sock.getsockname()[:2]
    return str(TcpAddress(host, port))


@contextmanager
def _as_usage_error(address: Address) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"--listen {address}: {error.strerror or error}") from error
