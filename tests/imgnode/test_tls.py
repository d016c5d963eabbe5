"""Mutual TLS: real handshakes over a socket pair, good ones and each way to fail, and the checks of our own
files.
"""

import datetime
import ssl
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trio.testing
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from imgnode import certs, tls
from imgnode.tls_stream import secure
from imgwire.errors import UsageError

pytestmark = pytest.mark.t1

HOST = "node-b.example"


class Files:
    """ca, cert and key of one node, on disk."""

    def __init__(self, directory: Path, node: str) -> None:
        self.ca = directory / "ca.pem"
        self.cert = directory / f"{node}.pem"
        self.key = directory / f"{node}.key"

    def server(self) -> ssl.SSLContext:
        return tls.server_context(self.ca, self.cert, self.key)

    def client(self) -> ssl.SSLContext:
        return tls.client_context(self.ca, self.cert, self.key)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of certificates, by two CAs: `ours` and `theirs`."""
    directory = tmp_path_factory.mktemp("certs")
    for name in ("ours", "theirs"):
        certs.make_set(directory / name, ["node-a.example", HOST, "127.0.0.1"], 2)
    return directory


@pytest.fixture
def node_a(sets: Path) -> Files:
    return Files(sets / "ours", "node-a.example")


@pytest.fixture
def node_b(sets: Path) -> Files:
    return Files(sets / "ours", HOST)


def _issue(directory: Path, *, days: int) -> Files:
    """A set by another CA library, ending `days` from now."""
    directory.mkdir()
    authority = trustme.CA()
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    start = end - datetime.timedelta(days=10)
    leaf = authority.issue_cert(HOST, not_before=start, not_after=end)
    files = Files(directory, "node")
    authority.cert_pem.write_to_path(str(files.ca))
    leaf.private_key_pem.write_to_path(str(files.key))
    for blob in leaf.cert_chain_pems:
        blob.write_to_path(str(files.cert), append=True)
    return files


async def _pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    one, other = trio.socket.socketpair()
    return trio.SocketStream(one), trio.SocketStream(other)


async def _talk(transport: trio.SocketStream, context: ssl.SSLContext, host: str | None, said: list[str]) -> None:
    """Secure the connection, then say one byte and hear one; what goes wrong is described."""
    try:
        stream = await secure(transport, context, host)
        await stream.send_all(b"x")
        heard = await stream.receive_some(1)
        said.append("ok" if heard == b"x" else "closed")
    except trio.BrokenResourceError as error:
        said.append(tls.describe_tls_error(error))
    await trio.aclose_forcefully(transport)


async def _handshake(client: ssl.SSLContext, server: ssl.SSLContext, host: str = HOST) -> tuple[str, str]:
    """What the client and the server say of it."""
    left, right = await _pair()
    client_said: list[str] = []
    server_said: list[str] = []
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_talk, left, client, host, client_said)
            nursery.start_soon(_talk, right, server, None, server_said)
    return client_said[0], server_said[0]


async def test_both_of_one_set(node_a: Files, node_b: Files) -> None:
    assert await _handshake(node_a.client(), node_b.server()) == ("ok", "ok")


async def test_either_way_round_and_by_address(sets: Path, node_b: Files) -> None:
    address = Files(sets / "ours", "127.0.0.1")
    assert await _handshake(node_b.client(), address.server(), "127.0.0.1") == ("ok", "ok")


async def test_tls_1_3_and_nothing_older(node_a: Files, node_b: Files) -> None:
    assert node_a.client().minimum_version is ssl.TLSVersion.TLSv1_3
    old = node_a.client()
    old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_2
    client, server = await _handshake(old, node_b.server())
    assert server == "TLS: this side refuses the peer: it cannot do TLS 1.3: use a newer OpenSSL there"
    assert client == "TLS: the peer refuses this side: it cannot do TLS 1.3: use a newer OpenSSL there"


async def test_refusal_reaches_a_client_that_has_already_sent(sets: Path, node_b: Files) -> None:
    """Over TCP, where closing with unread bytes would throw the alert away."""
    stranger = Files(sets / "theirs", "node-a.example")
    context = stranger.client()
    context.load_verify_locations(cafile=str(node_b.ca))
    said: list[str] = []

    async def serve(stream: trio.SocketStream) -> None:
        await _talk(stream, node_b.server(), None, [])

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
        stream = await secure(await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1]), context, HOST)
        await stream.send_all(bytes(100_000))
        with pytest.raises(trio.BrokenResourceError) as caught:
            await stream.receive_some(1)
        said.append(tls.describe_tls_error(caught.value))
        await trio.aclose_forcefully(stream)
        nursery.cancel_scope.cancel()
    assert said[0].startswith("TLS: the peer refuses this side: our certificate comes from another CA")


async def test_a_silent_peer_can_be_given_up(node_b: Files) -> None:
    left, right = await _pair()
    async with left:
        with trio.move_on_after(0.05) as scope:
            await secure(right, node_b.server())
        assert scope.cancelled_caught
        assert await left.receive_some(1) == b""


async def test_server_of_another_ca(sets: Path, node_a: Files) -> None:
    stranger = Files(sets / "theirs", HOST)
    client, server = await _handshake(node_a.client(), stranger.server())
    assert client.startswith("TLS: this side refuses the peer: the peer's certificate comes from another CA")
    assert server.startswith("TLS: the peer refuses this side: our certificate comes from another CA")


async def test_client_of_another_ca(sets: Path, node_b: Files) -> None:
    """The client trusts the server, but shows a certificate of another CA."""
    stranger = Files(sets / "theirs", "node-a.example")
    context = stranger.client()
    context.load_verify_locations(cafile=str(node_b.ca))
    client, server = await _handshake(context, node_b.server())
    assert server.startswith("TLS: this side refuses the peer: the peer's certificate comes from another CA")
    assert client.startswith("TLS: the peer refuses this side: our certificate comes from another CA")


async def test_client_without_certificate(node_b: Files) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile=str(node_b.ca))
    client, server = await _handshake(context, node_b.server())
    assert server.startswith("TLS: this side refuses the peer: it sent no certificate")
    assert client.startswith("TLS: the peer refuses this side: we sent no certificate")


async def test_server_of_another_name(node_a: Files, node_b: Files) -> None:
    client, server = await _handshake(node_a.client(), node_b.server(), "node-c.example")
    assert client.startswith("TLS: this side refuses the peer: the peer's certificate names other hosts")
    assert server.startswith("TLS: the peer refuses this side: our certificate does not name the host")


async def test_server_of_another_address(sets: Path, node_a: Files) -> None:
    address = Files(sets / "ours", "127.0.0.1")
    client, _ = await _handshake(node_a.client(), address.server(), "127.0.0.2")
    assert client.startswith("TLS: this side refuses the peer: the peer's certificate names other addresses")


async def test_expired_server(tmp_path: Path, node_a: Files) -> None:
    expired = _issue(tmp_path / "expired", days=-1)
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(str(expired.cert), str(expired.key))
    client_context = node_a.client()
    client_context.load_verify_locations(cafile=str(expired.ca))
    client, server = await _handshake(client_context, server_context)
    assert client == (
        "TLS: this side refuses the peer: the peer's certificate has expired: make a new set of certificates"
    )
    assert server.startswith("TLS: the peer refuses this side: our certificate has expired there")


@pytest.mark.parametrize(
    ("greeting", "expected"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "it speaks HTTP"),
        (b"IMGL" + bytes(60), "it does not speak TLS"),
    ],
)
async def test_plain_client_that_speaks(node_b: Files, greeting: bytes, expected: str) -> None:
    left, right = await _pair()
    async with left, right:
        await left.send_all(greeting)
        said: list[str] = []
        await _talk(right, node_b.server(), None, said)
    assert said[0].startswith(f"TLS: this side refuses the peer: {expected}")


async def test_plain_server(node_a: Files) -> None:
    left, right = await _pair()
    async with left, right:
        await right.send_all(b"IMGL" + bytes(60))
        said: list[str] = []
        await _talk(left, node_a.client(), HOST, said)
    assert said[0].startswith("TLS: this side refuses the peer: it does not speak TLS")


async def test_peer_that_just_closes(node_a: Files) -> None:
    left, right = await _pair()
    async with left:
        await right.aclose()
        said: list[str] = []
        await _talk(left, node_a.client(), HOST, said)
    assert said[0].startswith("TLS: the peer closed the connection")


@pytest.fixture
def broken(tmp_path: Path, node_a: Files) -> Iterator[Files]:
    """A copy of a good set, for a test to spoil."""
    files = Files(tmp_path, "a")
    files.ca.write_bytes(node_a.ca.read_bytes())
    files.cert.write_bytes(node_a.cert.read_bytes())
    files.key.write_bytes(node_a.key.read_bytes())
    yield files


def _refused(files: Files, *parts: str) -> None:
    for make in (files.server, files.client):
        with pytest.raises(UsageError) as caught:
            make()
        for part in parts:
            assert part in str(caught.value)
        assert "\n" not in str(caught.value)


def test_missing_files(broken: Files) -> None:
    broken.key.unlink()
    _refused(broken, "--tls-key", str(broken.key), "No such file")
    broken.cert.unlink()
    _refused(broken, "--tls-cert", str(broken.cert), "No such file")
    broken.ca.unlink()
    _refused(broken, "--tls-cacert", str(broken.ca), "No such file")


def test_a_directory_is_no_file(broken: Files) -> None:
    broken.key.unlink()
    broken.key.mkdir()
    _refused(broken, "--tls-key", "Is a directory")


def test_files_with_something_else(broken: Files) -> None:
    broken.key.write_text("no key")
    _refused(broken, "--tls-key", "no PEM private key")
    broken.cert.write_text("no certificate")
    _refused(broken, "--tls-cert", "no PEM certificate")


def test_key_of_another_node(broken: Files, node_b: Files) -> None:
    broken.key.write_bytes(node_b.key.read_bytes())
    _refused(broken, "--tls-key", "not the key of")


def test_certificate_of_another_set(broken: Files, sets: Path) -> None:
    broken.ca.write_bytes((sets / "theirs" / "ca.pem").read_bytes())
    _refused(broken, "--tls-cert", "no CA in", str(broken.ca))


def test_expired_and_not_yet_valid(tmp_path: Path) -> None:
    _refused(_issue(tmp_path / "old", days=-1), "--tls-cert", "expired at")
    _refused(_issue(tmp_path / "new", days=20), "--tls-cert", "valid only from")


def test_set_of_another_tool_works(tmp_path: Path) -> None:
    files = _issue(tmp_path / "other", days=5)
    assert files.server().verify_mode is ssl.CERT_REQUIRED


def test_key_with_a_passphrase(broken: Files) -> None:
    key = load_pem_private_key(broken.key.read_bytes(), password=None)
    broken.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    _refused(broken, "--tls-key", "passphrase")


def test_errors_that_are_not_known_still_say_something() -> None:
    error = ssl.SSLError(1, "[SSL: ODD] odd")
    assert tls.describe_tls_error(error).startswith("TLS: the handshake failed (")
    wrapped = trio.BrokenResourceError()
    wrapped.__cause__ = error
    assert tls.describe_tls_error(wrapped) == tls.describe_tls_error(error)
