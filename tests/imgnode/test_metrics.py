"""The metrics endpoint over real sockets: what it serves, and what a bad client gets."""

import pytest
import trio
import trio.testing
from prometheus_client import CollectorRegistry

from imgnode import metrics_server
from imgnode.metrics import Metrics
from imgnode.metrics import metrics_server as metrics_server_of
from imgnode.metrics_server import MetricsServer, counted
from imgwire.errors import UsageError

pytestmark = pytest.mark.t1


async def _ask(registry: CollectorRegistry, request: bytes, address: str = "127.0.0.1:0") -> bytes:
    async with trio.open_nursery() as nursery:
        bound: list[tuple[str, int]] = await nursery.start(metrics_server.serve, address, registry)
        stream = await trio.open_tcp_stream(*bound[0])
        async with stream:
            await stream.send_all(request)
            answer = b"".join([part async for part in stream])
        nursery.cancel_scope.cancel()
    return answer


async def test_scrape() -> None:
    registry = CollectorRegistry()
    figures = counted(registry)
    figures.image_bytes.labels("out", "pages").inc(4096)
    figures.sessions.labels("receiving").set_function(lambda: 2)
    figures.restore_seconds.observe(0.2)
    answer = await _ask(registry, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
    assert f"Content-Length: {len(body)}".encode() in head
    assert b'imgnode_image_bytes_total{direction="out",kind="pages"} 4096.0' in body
    assert b'imgnode_sessions{state="receiving"} 2.0' in body
    assert b'imgnode_restore_seconds_bucket{le="0.3"} 1.0' in body


async def test_where_nobody_asks_nothing_is_counted() -> None:
    assert metrics_server_of(None) is None
    figures = Metrics()
    figures.image_bytes.labels("out", "pages").inc(4096)
    figures.sessions.labels("receiving").set_function(lambda: 1 / 0)
    figures.restore_seconds.observe(0.2)


async def test_each_program_has_its_own_registry() -> None:
    one, other = MetricsServer(""), MetricsServer("")
    one.metrics.reconnects.inc()
    answer = await _ask(other.registry, b"GET /metrics HTTP/1.1\r\n\r\n")
    assert b"imgnode_reconnects_total 0.0" in answer


async def test_head_has_no_body() -> None:
    answer = await _ask(MetricsServer("").registry, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert answer.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /other HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"405"),
        (b"\x16\x03\x01\x02\x00\r\n\r\n", b"400"),
        (b"GET /metrics SMTP\r\n\r\n", b"400"),
        (b"x" * (metrics_server.MAX_REQUEST + 1), b"431"),
    ],
)
async def test_bad_requests(request_: bytes, status: bytes) -> None:
    answer = await _ask(CollectorRegistry(), request_)
    assert answer.split(b" ")[1] == status
    assert answer.endswith(b"\r\n\r\n")


async def test_request_in_pieces_and_ipv6() -> None:
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(metrics_server.serve, "[::1]:0", MetricsServer("").registry)
        async with await trio.open_tcp_stream(*bound[0]) as stream:
            for byte in b"GET /metrics HTTP/1.1\r\n\r\n":
                await stream.send_all(bytes([byte]))
            answer = b"".join([part async for part in stream])
        nursery.cancel_scope.cancel()
    assert answer.startswith(b"HTTP/1.1 200")


async def test_a_silent_client_is_dropped_and_others_are_served(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(metrics_server.serve, "127.0.0.1:0", MetricsServer("").registry)
        async with await trio.open_tcp_stream(*bound[0]) as silent:
            assert await silent.receive_some(1) == b""
        assert trio.current_time() >= metrics_server.REQUEST_DEADLINE
        nursery.cancel_scope.cancel()
    assert autojump_clock.autojump_threshold == 0


async def test_a_client_that_breaks_off_does_no_harm() -> None:
    async with trio.open_nursery() as nursery:
        bound = await nursery.start(metrics_server.serve, "127.0.0.1:0", MetricsServer("").registry)
        for _ in range(metrics_server.MAX_CONNECTIONS + 5):
            async with await trio.open_tcp_stream(*bound[0]) as stream:
                await stream.send_all(b"GET /metrics")
        async with await trio.open_tcp_stream(*bound[0]) as stream:
            await stream.send_all(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert (await stream.receive_some(12)) == b"HTTP/1.1 200"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("address", ["", "9100", "localhost", "host:port", "host:99999", "[::1", "u@h:1", "h:1/x"])
async def test_addresses_that_make_no_sense(address: str) -> None:
    with pytest.raises(UsageError, match="--metrics"):
        await metrics_server.serve(address, CollectorRegistry())


async def test_an_address_that_is_taken() -> None:
    async with trio.open_nursery() as nursery:
        (bound,) = await nursery.start(metrics_server.serve, "127.0.0.1:0", CollectorRegistry())
        with pytest.raises(UsageError, match="cannot listen there"):
            await metrics_server.serve(f"127.0.0.1:{bound[1]}", CollectorRegistry())
        nursery.cancel_scope.cancel()
