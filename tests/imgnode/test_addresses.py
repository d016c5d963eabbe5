"""What a user may write for the other end of the link."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgnode.addresses import Address, DescriptorAddress, FileAddress, TcpAddress, UnixAddress, parse_address
from imgwire.errors import UsageError

pytestmark = pytest.mark.t0


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("host:7000", TcpAddress("host", 7000)),
        ("127.0.0.1:0", TcpAddress("127.0.0.1", 0)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("unix:/run/link", UnixAddress(Path("/run/link"))),
        ("file:/a:b", FileAddress(Path("/a:b"))),
        ("fd:3,4", DescriptorAddress(3, 4)),
        ("fd:7", DescriptorAddress(7, 7)),
    ],
)
def test_each_kind(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


def test_paths_become_absolute() -> None:
    assert parse_address("unix:x") == UnixAddress(Path.cwd() / "x")


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", ":7000", "host:x", "host:65536", "host:-1", "host:1²", "host:" + "9" * 5000, "[]:1"),
        *("unix:", "file:", "fd:", "fd:x", "fd:1,2,3", "fd:-1", "fd:1²", "fd:1,"),
    ],
)
def test_what_is_none_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(UsageError, match=r"address .*: write "):
        parse_address(text)


@given(st.text())
def test_anything_is_an_address_or_a_usage_error(text: str) -> None:
    try:
        address = parse_address(text)
    except UsageError:
        return
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)),
        *(("10.0.0.1", False), ("::", False), ("0.0.0.0", False), ("localhost.example", False)),
    ],
)
def test_what_stays_on_the_machine(host: str, loopback: bool) -> None:
    assert TcpAddress(host, 1).is_loopback is loopback
