"""The command as a process: exit codes, one line for an error, signals, descriptors inherited."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from criu_image_streamer.capture import SOCKET
from tests.criu_image_streamer.checkpoint import IMAGES, capture_to_files, files
from tests.fake_criu import connect_dump

pytestmark = pytest.mark.t1

COMMAND = [sys.executable, "-m", "criu_image_streamer"]


def run(*arguments: str, stdin: int = subprocess.DEVNULL) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *arguments], stdin=stdin, capture_output=True, text=True, check=False, timeout=30)


def test_version_and_help() -> None:
    version = run("--version")
    assert version.returncode == 0
    assert re.fullmatch(r"criu-image-streamer \d+\.\d+\.\d+\n", version.stdout)
    assert run("--help").returncode == 0


def test_serving_loads_no_more_than_it_needs() -> None:
    """A test suite of CRIU starts the command some hundred times."""
    heavy = ["structlog", "typer", "google.protobuf", "imgproxy", "imgcache.session", "importlib.metadata"]
    program = "import sys, criu_image_streamer.operations, criu_image_streamer.restore\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert "trio" in loaded
    assert not set(heavy) & set(loaded)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["serve"], 2, "--images-dir"),
        (["-D", "/proc/nowhere", "extract"], 1, "/proc/nowhere"),
        (["-D", "{}", "-s", "77", "extract"], 2, "shard descriptor 77: Bad file descriptor"),
        (["-D", "{}", "-p", "77", "extract"], 2, "--progress-fd 77"),
        (["-D", "{}", "extract"], 2, "shard stdin: is no pipe, socket or file"),
        (["-D", "{}/" + 100 * "x", "capture"], 2, "a socket's path has at most 107 bytes"),
    ],
)
def test_one_line_for_an_error(node_dir: Path, arguments: list[str], code: int, says: str) -> None:
    ended = run(*(argument.format(node_dir) for argument in arguments))
    assert (ended.returncode, ended.stdout) == (code, "")
    assert says in ended.stderr
    assert ended.stderr.startswith("criu-image-streamer: ") and ended.stderr.count("\n") == 1


async def test_a_damaged_checkpoint(node_dir: Path) -> None:
    [path] = await capture_to_files(node_dir, 1)
    path.write_bytes(path.read_bytes()[:-1])
    with files([path], os.O_RDONLY) as [fd]:
        ended = await trio.to_thread.run_sync(lambda: run("-D", str(node_dir / "out"), "extract", stdin=fd))
    assert ended.returncode == 1
    assert re.fullmatch(r"criu-image-streamer: shard stdin \(part 1 of 1\): byte \d+: .*\n", ended.stderr)


async def test_an_archive_from_stdin(node_dir: Path) -> None:
    [path] = await capture_to_files(node_dir, 1)
    with files([path], os.O_RDONLY) as [fd]:
        ended = await trio.to_thread.run_sync(lambda: run("-D", str(node_dir / "out"), "extract", stdin=fd))
    assert (ended.returncode, ended.stdout) == (0, "")
    assert ended.stderr.startswith('{"shards":[{"size":')
    assert {path.name: path.read_bytes() for path in (node_dir / "out").iterdir()} == IMAGES


@asynccontextmanager
async def capturing(directory: Path, stdout: int) -> AsyncIterator[trio.Process]:
    """A capture that is ready for CRIU; it must end by itself."""
    process = await trio.lowlevel.open_process(
        [*COMMAND, "-D", str(directory), "capture"], stdout=stdout, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    async with process.stderr:
        assert await process.stderr.receive_some(100) == b"socket-init\n"
        yield process
    if process.stdout is not None:
        await process.stdout.aclose()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_leaves_no_socket(node_dir: Path, number: signal.Signals) -> None:
    async with capturing(node_dir, subprocess.PIPE) as process:
        process.send_signal(number)
        assert await process.wait() == 128 + number
    assert not (node_dir / SOCKET).exists()


async def test_nobody_reads_the_shard(node_dir: Path) -> None:
    """All of CRIU's pipes close, so that its dump fails and the program runs on."""
    reader, writer = os.pipe()
    async with capturing(node_dir, writer) as process:
        os.close(writer)
        os.close(reader)
        criu = await connect_dump(node_dir / SOCKET)
        with criu.sock:
            pipe = await criu.open("pages-1.img")
            with pytest.raises(trio.BrokenResourceError):
                async with pipe:
                    while True:
                        await pipe.send_all(bytes(1 << 20))
            assert await criu.hung_up()
        assert await process.wait() == 1
