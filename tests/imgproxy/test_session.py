"""A session's name: chosen, or made from the host's."""

import platform

import pytest

from imgproxy.session import session_name
from imgwire.errors import UsageError
from imgwire.names import MAX_DEFAULT_SESSION_NAME, check_session_name

pytestmark = pytest.mark.t0

IDENTITY = "0123456789abcdef" * 2


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("web.example.test", "web-01234567"),
        ("", "node-01234567"),
        ("_ä_", "node-01234567"),
        ("ip-172-31-255-255-of-this-region", "ip-172-31-255-255-of-01234567"),
        ("x" * 64, "x" * 20 + "-01234567"),
    ],
)
def test_one_that_nobody_chose(host: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "node", lambda: host)
    assert session_name("", IDENTITY) == check_session_name(name) == name
    assert len(name) <= MAX_DEFAULT_SESSION_NAME


def test_one_that_was_chosen() -> None:
    assert session_name("nightly", IDENTITY) == "nightly"


@pytest.mark.parametrize("name", ["x" * 65, "a/b", "..", "a\nb"])
def test_one_that_cannot_be_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(UsageError, match=r"^--session: session name .*; choose another name$"):
        session_name(name, IDENTITY)
