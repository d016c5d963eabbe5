"""Logs: which form, which lines, and that no peer can write to the terminal through them."""

import io
import json
from collections.abc import Iterator

import pytest
import structlog

from imgnode import logs

pytestmark = pytest.mark.t0


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restore_structlog() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def _fail() -> None:
    raise OSError(28, "No space left on device", "/spool/pages-1.img")


def _log_failure() -> None:
    try:
        _fail()
    except OSError:
        structlog.get_logger().exception("cannot store", session="s1")


def test_json_when_not_a_terminal() -> None:
    stream = io.StringIO()
    logs.configure(0, stream)
    structlog.get_logger().info("complete", session="s1", bytes=7)
    event = json.loads(stream.getvalue())
    assert (event["event"], event["level"], event["session"], event["bytes"]) == ("complete", "info", "s1", 7)
    assert event["timestamp"].endswith("Z")


def test_colours_only_on_a_terminal() -> None:
    terminal = Terminal()
    logs.configure(0, terminal)
    structlog.get_logger().info("complete", session="s1")
    assert "\x1b[" in terminal.getvalue()
    assert "complete" in terminal.getvalue()


def test_debug_only_with_v() -> None:
    for verbosity, lines in ((0, 0), (1, 1)):
        stream = io.StringIO()
        logs.configure(verbosity, stream)
        structlog.get_logger().debug("detail")
        assert len(stream.getvalue().splitlines()) == lines


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["json", "human"])
def test_an_error_is_one_line_without_v(stream: io.StringIO) -> None:
    logs.configure(0, stream)
    _log_failure()
    text = stream.getvalue()
    assert len(text.splitlines()) == 1
    assert "/spool/pages-1.img" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()], ids=["json", "human"])
def test_a_traceback_with_v(stream: io.StringIO) -> None:
    logs.configure(1, stream)
    _log_failure()
    assert "Traceback" in stream.getvalue()
    assert "_fail" in stream.getvalue()


def test_an_exception_given_as_value() -> None:
    stream = io.StringIO()
    logs.configure(0, stream)
    structlog.get_logger().error("cut", exc_info=ValueError("a\nb"))
    event = json.loads(stream.getvalue())
    assert event["error"] == "ValueError: a\\nb"


def test_control_characters_never_reach_the_terminal() -> None:
    terminal = Terminal()
    logs.configure(1, terminal)
    structlog.get_logger().warning("peer said \x1b]0;owned\x07", name="\x1b[2J\nnext")
    text = terminal.getvalue()
    assert len(text.splitlines()) == 1
    assert "\x1b]0" not in text
    assert "\x1b[2J" not in text
    assert "\x07" not in text
    assert "\\x1b[2J\\n" in text.replace("\\\\", "\\")
