"""Sizes as people write them, and errors as they read them."""

from importlib.metadata import version

import pytest
import trio
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

import imgcache.cli
import imgproxy.cli
from imgnode.command_line import explain, parse_size, run_program, show_size
from imgnode.greeting import SessionRefused
from imgwire.errors import LocalProtocolError, RemoteProtocolError, UsageError

pytestmark = pytest.mark.t0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        *(("0", 0), ("4096", 4096), ("7B", 7), ("2 kB", 2000), ("1.5G", 1_500_000_000)),
        *(("64KiB", 64 << 10), ("64MiB", 64 << 20), ("64Mi", 64 << 20), (" 3TiB ", 3 << 40)),
    ],
)
def test_sizes_are_understood(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1e9", "1,5G", "GiB", "1 PiB", "1MM", "0x10"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="write a number"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (200 << 10, "200 KiB"),
        (1 << 30, "1.0 GiB"),
        (5 << 40, "5120 GiB"),
    ],
)
def test_sizes_are_shown_short(size: int, text: str) -> None:
    assert show_size(size) == text


@given(st.integers(0, 1 << 50))
def test_a_size_that_was_shown_is_about_the_same_when_read(size: int) -> None:
    assert parse_size(show_size(size)) == pytest.approx(size, rel=0.06)


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (UsageError("do this"), "do this", 2),
        (RemoteProtocolError("they erred"), "they erred", 1),
        (SessionRefused("full", final=True), "full", 1),
        (FileNotFoundError(2, "No such file or directory", "/x"), "/x: No such file or directory", 1),
        (OSError("no path"), "no path", 1),
        (trio.BrokenResourceError(), "BrokenResourceError", 1),
    ],
)
def test_an_error_is_one_line(error: Exception, line: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise error

    assert run_program("imgtest", False, main) == code
    assert capsys.readouterr().err == f"imgtest: {line}\n"
    assert explain(error) == line


def test_what_is_a_bug_is_not_hidden() -> None:
    def main() -> int:
        raise LocalProtocolError("a bug")

    with pytest.raises(LocalProtocolError):
        run_program("imgtest", False, main)


def test_the_other_ends_of_a_program() -> None:
    def interrupted() -> int:
        raise KeyboardInterrupt

    assert run_program("imgtest", False, lambda: 7) == 7
    assert run_program("imgtest", False, interrupted) == 130


@pytest.mark.parametrize(("app", "name"), [(imgproxy.cli.app, "imgproxy"), (imgcache.cli.app, "imgcache")])
def test_the_version_is_shown(app: typer.Typer, name: str) -> None:
    done = CliRunner().invoke(app, ["--version"], prog_name=name)
    assert (done.exit_code, done.output) == (0, f"{name} {version('imgproxy')}\n")
