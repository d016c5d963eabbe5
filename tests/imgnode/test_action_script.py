"""The action script: what CRIU's environment says, and the script that is written for it."""

import os
import subprocess
from pathlib import Path

import pytest

from imgnode.action_script import PREPARED, SOCKET_VARIABLE, Action, from_environment, script, users
from imgwire.errors import UsageError

pytestmark = pytest.mark.t1

SOCKET = "control.sock"


def environment(directory: Path, **more: str) -> tuple[dict[str, str], int]:
    """As CRIU sets it, with this process as CRIU; the descriptor is the caller's to close."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    return {"CRTOOLS_SCRIPT_ACTION": "post-dump", "CRTOOLS_IMAGE_DIR": f"/proc/{os.getpid()}/fd/{fd}", **more}, fd


@pytest.mark.parametrize("inside", [True, False])
def test_the_socket_is_in_the_images_directory_or_above(tmp_path: Path, inside: bool) -> None:
    directory = tmp_path / "session"
    directory.mkdir()
    socket = (directory if inside else tmp_path) / SOCKET
    socket.touch()
    variables, fd = environment(directory, CRTOOLS_INIT_PID="42")
    assert from_environment(SOCKET, variables) == Action("post-dump", os.getpid(), 42, str(socket))
    os.close(fd)


def test_the_written_script_names_its_socket(tmp_path: Path) -> None:
    variables, fd = environment(tmp_path, **{SOCKET_VARIABLE: "/elsewhere"})
    assert from_environment(SOCKET, variables) == Action("post-dump", os.getpid(), 0, "/elsewhere")
    os.close(fd)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"CRTOOLS_SCRIPT_ACTION": "post-dump"},
        {"CRTOOLS_IMAGE_DIR": "/proc/1/fd/2"},
        {"CRTOOLS_SCRIPT_ACTION": "post-dump", "CRTOOLS_IMAGE_DIR": "/tmp"},
        {"CRTOOLS_SCRIPT_ACTION": "post-dump", "CRTOOLS_IMAGE_DIR": "/proc/x/fd/2"},
    ],
)
def test_outside_of_criu_it_says_so(variables: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="--action-script"):
        from_environment(SOCKET, variables)


def run(text: str, action: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "script"
    path.write_text(text)
    path.chmod(0o700)
    return subprocess.run(
        [path], env={"CRTOOLS_SCRIPT_ACTION": action}, capture_output=True, text=True, check=False, timeout=30
    )


def test_other_actions_end_in_the_shell(tmp_path: Path) -> None:
    result = run(script("no.such.module", "/s", ["post-dump"]), "pre-dump", tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_an_awaited_action_runs_the_module_and_gives_its_code(tmp_path: Path) -> None:
    result = run(script("imgproxy.hook", "/s o", ["post-dump", "pre-dump"]), "post-dump", tmp_path)
    assert result.returncode != 0
    assert "--action-script" in result.stderr


@pytest.mark.parametrize("action", ["pre-dump", "post-dump", "pre-resume"])
@pytest.mark.parametrize("well", [True, False])
def test_a_script_of_the_users_comes_first_and_has_to_go_well(tmp_path: Path, action: str, well: bool) -> None:
    theirs = tmp_path / "of mine"
    theirs.write_text(f'#!/bin/sh\necho "$CRTOOLS_SCRIPT_ACTION"\nexit {0 if well else 3}\n')
    theirs.chmod(0o700)
    text = script("no.such.module", "/s", ["pre-stream"], ["pre-resume"], users(theirs, tmp_path))
    result = run(text, action, tmp_path)
    code = 0 if well or action == "pre-resume" else 1
    assert (result.returncode, result.stdout, result.stderr) == (code, f"{action}\n", "")
    assert (tmp_path / PREPARED).exists() == (well and action == "pre-dump")


def test_where_it_fails_ours_is_not_run(tmp_path: Path) -> None:
    text = script("no.such.module", "/s", ["post-dump"], (), users(Path("/bin/false")))
    result = run(text, "post-dump", tmp_path)
    assert (result.returncode, result.stderr) == (1, "")


def test_a_path_with_quotes_is_refused() -> None:
    with pytest.raises(UsageError, match="quotes"):
        script("imgproxy.hook", "/it's", ["post-dump"])
