"""What scripts/setup promises of the commands it makes: they work from anywhere, and what they start is criu itself."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.t2


def test_criu_runs_from_anywhere_through_a_link(criu: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").symlink_to(criu)
    command = ["./linked", "--version"]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    version = (criu.parent.parent / "criu" / criu.name.removeprefix("criu-") / "version").read_text()
    assert f"Version: {version}" in finished.stdout


def test_the_process_started_is_criu_itself(criu: Path, tmp_path: Path) -> None:
    """Whoever signals or waits for the pid means criu: the wrapper must not stay in between."""
    reader, writer = os.pipe()
    arguments = ["page-server", "-D", str(tmp_path), "--address", "127.0.0.1", "--status-fd", str(writer)]
    with subprocess.Popen([criu, *arguments], pass_fds=[writer], stdout=subprocess.DEVNULL) as process:
        os.close(writer)
        ready = os.read(reader, 1)
        os.close(reader)
        command = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
        process.send_signal(signal.SIGKILL)
    assert ready == b"\0"
    assert command[3].endswith(b"/usr/sbin/criu")
    assert process.returncode == -signal.SIGKILL
