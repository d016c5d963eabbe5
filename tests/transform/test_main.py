"""The imgtransform command."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transform.synthetic import image, regular
from transform.__main__ import main

pytestmark = pytest.mark.t0


@pytest.fixture(autouse=True)
def restored_signal_handler() -> Iterator[None]:
    yield
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "in"
    directory.mkdir()
    (directory / "files.img").write_bytes(image("files", regular(1, b"/a/f")))
    return directory


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> object:
    """The exit code, or the message that is the end of the process."""
    monkeypatch.setattr(sys, "argv", ["imgtransform", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return end.value.code


def test_a_directory_is_transformed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(monkeypatch, source, out, "--map-path", "/a:/b", "--map-path", "/z:/y") == 0
    assert (out / "files.img").read_bytes() == image("files", regular(1, b"/b/f"))
    assert capsys.readouterr().err == "imgtransform: --map-path /z:/y: matched nothing in this dump\n"


def test_an_image_is_shown(source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "show", source / "files.img") == 0
    indented = capsys.readouterr().out
    assert run(monkeypatch, "show", "--compact", source / "files.img") == 0
    compact = capsys.readouterr().out
    assert (compact.count("\n"), indented.count("\n") > 5) == (1, True)
    assert json.loads(compact) == json.loads(indented)
    assert json.loads(compact)["kind"] == "files"


def test_mistakes_are_one_line(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("hello there")
    assert str(run(monkeypatch, "show", tmp_path / "text")).startswith("imgtransform: text: byte 0: not a CRIU image")
    absent = tmp_path / "absent"
    assert run(monkeypatch, "show", absent) == f"imgtransform: {absent}: No such file or directory"
    assert str(run(monkeypatch, source, tmp_path / "o", "--map-path", "x")).startswith("imgtransform: --map-path x:")
    refused = "imgtransform: files.img: --tcp-listen-remap 1:2: nothing listens there (ports that do: none)"
    assert run(monkeypatch, source, tmp_path / "o", "--tcp-listen-remap", "1:2") == refused
    assert not (tmp_path / "o").exists()


def test_help_and_usage(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    assert "DIR_OUT" in capsys.readouterr().out
    assert run(monkeypatch) == 2


def test_the_module_is_the_command(source: Path) -> None:
    command = [sys.executable, "-m", "transform", "show", str(source / "nothing.img")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"imgtransform: {source}/nothing.img: No such file or directory\n"


def test_sigterm_cleans_up_on_the_way_out(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def terminated(*_: int) -> int:
        signal.raise_signal(signal.SIGTERM)
        return 0

    monkeypatch.setattr("os.copy_file_range", terminated)
    assert run(monkeypatch, source, tmp_path / "out") == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
