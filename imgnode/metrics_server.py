"""Figures for Prometheus, served when `--metrics HOST:PORT` asks for them; only then is its library loaded.

prometheus_client's own server is a thread per scrape. This one is a trio task: one GET, one answer, then the
connection is closed. Every bound is small, because anybody who can reach the port may connect. Each running
program has its own registry, so several can live in one process, as they do in the tests.
"""

from urllib.parse import urlsplit

import trio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest

from imgnode.metrics import Metrics
from imgwire.errors import UsageError

MAX_REQUEST = 8192
"""Bytes of a request's head, all headers together; what the common HTTP servers allow."""

REQUEST_DEADLINE = 10.0
"""Seconds for a whole exchange: Prometheus gives a scrape 10 s by default."""

MAX_CONNECTIONS = 16
"""Connections that are answered at once; others wait in the listen queue."""

DURATIONS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0)
"""Upper bounds of the histograms, in seconds: from an empty process to a hundred gigabytes."""


class MetricsServer:
    """Counts, and serves at `address` what has been counted."""

    def __init__(self, address: str) -> None:
        self.registry = CollectorRegistry()
        self.metrics = counted(self.registry)
        self._address = address

    async def serve(self, *, task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED) -> None:
        """See the function."""
        await serve(self._address, self.registry, task_status=task_status)


def counted(registry: CollectorRegistry) -> Metrics:
    """Metrics that count, in a registry."""
    return Metrics(
        image_bytes=Counter("imgnode_image_bytes", "Bytes of images", ("direction", "kind"), registry=registry),
        sessions=Gauge("imgnode_sessions", "Sessions by state", ("state",), registry=registry),
        reconnects=Counter("imgnode_reconnects", "Links joined again after a cut", registry=registry),
        zstd_bytes=Counter(
            "imgnode_zstd_bytes", "Bytes before and after compression", ("direction",), registry=registry
        ),
        patches=Counter("imgnode_patches", "Ranges rewritten in place", registry=registry),
        restore_seconds=_histogram("restore_seconds", "From complete to restored", registry),
        commit_seconds=_histogram("commit_seconds", "From restored to committed", registry),
    )


def _histogram(name: str, text: str, registry: CollectorRegistry) -> Histogram:
    return Histogram(f"imgnode_{name}", text, buckets=DURATIONS, registry=registry)


async def serve(
    address: str,
    registry: CollectorRegistry,
    *,
    task_status: trio.TaskStatus[list[tuple[str, int]]] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer scrapes on `address` ("HOST:PORT", "[::1]:9100"; port 0 takes a free one) until cancelled.

    Starts with the addresses that it listens on. UsageError for an address that makes no sense or is taken.
    """
    host, port = _parse(address)
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise UsageError(f"--metrics {address}: cannot listen there ({error}): name a free local address") from error
    limit = trio.CapacityLimiter(MAX_CONNECTIONS)

    async def answer(stream: trio.SocketStream) -> None:
        async with stream, limit:
            with trio.move_on_after(REQUEST_DEADLINE):
                await _exchange(stream, registry)

    bound = [listener.socket.getsockname()[:2] for listener in listeners]
    task_status.started(bound)
    await trio.serve_listeners(answer, listeners)


def _parse(address: str) -> tuple[str, int]:
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if host is None or port is None or parts.netloc != address:
        raise UsageError(f"--metrics {address}: this is no address: write HOST:PORT, such as 127.0.0.1:9100")
    return host, port


async def _exchange(stream: trio.SocketStream, registry: CollectorRegistry) -> None:
    """One request, one answer. A peer that breaks off or sends no HTTP only loses its own answer."""
    try:
        head = await _receive_head(stream)
        if head is not None:
            await stream.send_all(_response(head, registry))
            await stream.send_eof()
    except trio.BrokenResourceError:
        return


async def _receive_head(stream: trio.SocketStream) -> bytes | None:
    """Everything up to the empty line; what was received so far if it is too long; None if the peer left."""
    head = b""
    while b"\r\n\r\n" not in head and len(head) <= MAX_REQUEST:
        received = await stream.receive_some(MAX_REQUEST)
        if not received:
            return None
        head += received
    return head


def _response(head: bytes, registry: CollectorRegistry) -> bytes:
    if b"\r\n\r\n" not in head:
        return _message("431 Request Header Fields Too Large")
    words = head.split(b"\r\n", 1)[0].split(b" ")
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        return _message("400 Bad Request")
    method, target, _ = words
    if target.split(b"?", 1)[0] not in (b"/metrics", b"/"):
        return _message("404 Not Found")
    if method not in (b"GET", b"HEAD"):
        return _message("405 Method Not Allowed", extra="Allow: GET, HEAD\r\n")
    body = generate_latest(registry)
    return _message("200 OK", body, CONTENT_TYPE_PLAIN_0_0_4, with_body=method == b"GET")


def _message(
    status: str,
    body: bytes = b"",
    content_type: str = "text/plain; charset=utf-8",
    *,
    extra: str = "",
    with_body: bool = True,
) -> bytes:
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n"
        f"{extra}Connection: close\r\n\r\n"
    )
    return head.encode() + (body if with_body else b"")
