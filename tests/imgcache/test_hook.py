"""The restore's action script, run as CRIU runs it, against a cache that is played here."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from imgcache.hook import SOCKET, main
from imgnode.unix import listening

pytestmark = pytest.mark.t1


@pytest.fixture
def tree() -> Iterator["subprocess.Popen[bytes]"]:
    """What CRIU has restored."""
    with subprocess.Popen(["sleep", "infinity"]) as process:
        yield process
        process.kill()


@pytest.fixture
def dead_criu() -> int:
    """A pid that nobody has any more."""
    with subprocess.Popen(["true"]) as process:
        return process.pid


def hook(directory: Path, criu: int, init: int) -> list[str]:
    """The command of a post-restore script; it goes to `trio.run_process` with `environment`."""
    return [
        "env",
        "CRTOOLS_SCRIPT_ACTION=post-restore",
        f"CRTOOLS_IMAGE_DIR=/proc/{criu}/fd/3",
        f"CRTOOLS_INIT_PID={init}",
        f"IMGNODE_CONTROL_SOCKET={directory / SOCKET}",
        sys.executable,
        "-m",
        main.__module__,
    ]


async def _answer(listener: trio.socket.SocketType, *answers: dict[str, str]) -> dict[str, object]:
    sock, _ = await listener.accept()
    with sock:
        request: dict[str, object] = json.loads(await sock.recv(4096))
        for answer in answers:
            await sock.send(json.dumps(answer).encode() + b"\n")
    return request


async def test_run(node_dir: Path, tree: "subprocess.Popen[bytes]") -> None:
    async with listening(node_dir / SOCKET) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: _answer(listener, {"session": "s"}, {"decision": "run"}))
        done = await trio.run_process(hook(node_dir, os.getpid(), tree.pid), capture_stderr=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert tree.poll() is None


@pytest.mark.parametrize("criu", ["alive", "dead"])
async def test_told_to_stop_it_leaves_nothing_of_the_tree(
    node_dir: Path, tree: "subprocess.Popen[bytes]", dead_criu: int, criu: str
) -> None:
    """CRIU undoes its restore when the script fails, but one that was killed does nothing any more."""
    async with listening(node_dir / SOCKET) as listener, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: _answer(listener, {"decision": "stop", "reason": "it stays"}))
        command = hook(node_dir, os.getpid() if criu == "alive" else dead_criu, tree.pid)
        done = await trio.run_process(command, capture_stderr=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"imgcache hook: it stays\n")
    assert tree.wait() == -9


async def test_a_cache_that_is_gone_and_promised_nothing(node_dir: Path, tree: "subprocess.Popen[bytes]") -> None:
    done = await trio.run_process(hook(node_dir, os.getpid(), tree.pid), capture_stderr=True, check=False)
    assert done.returncode == 1
    assert tree.wait() == -9


async def test_a_tree_that_is_gone(node_dir: Path, dead_criu: int) -> None:
    done = await trio.run_process(hook(node_dir, os.getpid(), dead_criu), capture_stderr=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"imgcache hook: process {dead_criu} is gone before it was restored\n".encode()
