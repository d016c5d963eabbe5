"""An action script of the user's: whether it can be run, and the calls that CRIU does not make."""

from pathlib import Path

import pytest
import trio
from structlog.testing import capture_logs

from imgnode import users_script
from imgnode.action_script import PREPARED
from imgnode.users_script import DUMP_FAILED, RESTORE_FAILED, check, undo
from imgwire.errors import UsageError

pytestmark = pytest.mark.t1


def program(folder: Path, text: str) -> Path:
    path = folder / "script"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


def test_only_a_program_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = program(tmp_path, "exit 0")
    monkeypatch.chdir(tmp_path)
    assert check(Path("script")) == script
    script.chmod(0o600)
    for wrong in (script, tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match="no program"):
            check(wrong)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    directory = tmp_path / "images"
    directory.mkdir()
    (directory / PREPARED).touch()
    return directory


async def test_called_as_criu_does(tmp_path: Path, images: Path) -> None:
    script = program(tmp_path, 'echo "$# $CRTOOLS_SCRIPT_ACTION $CRTOOLS_IMAGE_DIR" >"$0.called"')
    with capture_logs() as logs:
        await undo(script, DUMP_FAILED, images)
    assert (tmp_path / "script.called").read_text() == f"0 dump-failed {images}\n"
    assert not logs


async def test_called_once_and_only_where_something_was_prepared(tmp_path: Path, images: Path) -> None:
    script = program(tmp_path, 'echo called >>"$0.called"')
    for _ in range(2):
        await undo(script, RESTORE_FAILED, images)
    assert (tmp_path / "script.called").read_text() == "called\n"


async def test_called_also_if_we_are_stopped(tmp_path: Path, images: Path) -> None:
    script = program(tmp_path, 'touch "$0.called"')
    with trio.CancelScope() as scope:
        scope.cancel()
        await undo(script, RESTORE_FAILED, images)
    assert (tmp_path / "script.called").exists()


@pytest.mark.parametrize(
    ("text", "reason"), [("exit 3", 3), ("exec sleep 1000", "not over after 0 s"), ("", "No such file or directory")]
)
async def test_what_goes_wrong_is_logged(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: object
) -> None:
    monkeypatch.setattr(users_script, "DEADLINE", 0.2)
    script = program(tmp_path, text) if text else tmp_path / "none"
    with capture_logs() as logs:
        await undo(script, DUMP_FAILED, images)
    assert logs[0]["failed"] == reason
