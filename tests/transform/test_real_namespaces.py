"""Every image of a dump with namespaces: decoded, encoded and shown."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.transform.conftest import Furnished
from transform.images.codec import decode
from transform.images.kinds import is_raw
from transform.show import show_file

pytestmark = pytest.mark.t2
PROGRAM = Path(__file__).with_name("namespaced.py")
OPTIONS = ("--file-locks", "--tcp-established", "--network-lock", "skip")


@pytest.fixture
def images(criu_latest: Path, node_dir: Path) -> Iterator[Path]:
    """The images of a `namespaced` process."""
    unshare = ["unshare", "--ipc", "--uts", "--net", "--pid", "--fork", "--kill-child", "setsid"]
    starter = subprocess.Popen(
        [*unshare, sys.executable, PROGRAM, node_dir],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert starter.stdout is not None
        with starter.stdout as said:
            assert said.readline() == b"ready\n"
        first = int(Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text())
        process = Furnished(criu_latest, node_dir, node_dir / "images", OPTIONS, first, starter)
        process.dump()
        yield process.images
    finally:
        starter.kill()
        starter.wait()


def test_every_image_survives_and_is_shown(images: Path) -> None:
    known = set()
    for path in images.glob("*.img"):
        decoded = decode(path.name, path.read_bytes())
        assert decoded.encode() == path.read_bytes()
        assert decoded.kind is not None or is_raw(path.name), f"{path.name} is of no kind that we know"
        assert show_file(path)
        known.add(decoded.kind.name if decoded.kind else "raw")
    assert {"ipcns-msg", "ipcns-sem", "ipcns-shm", "ipcns-var", "utsns", "netns", "netdev"} <= known
    assert {"tcp-stream", "fifo-data", "tty-info", "filelocks", "memfd"} <= known
