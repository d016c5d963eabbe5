"""Proves the instrument before anything is measured with it: a memcheck tree survives plain `criu dump` and
`criu restore` through a directory, and SelfCheck notices each of the faults that it exists to notice.
"""

import os
import re
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.conftest import StartMemcheck
from tests.programs.selfcheck import HISTORY_RECORD, SelfCheck

pytestmark = pytest.mark.t2

MIB = 1 << 20


async def run_criu(criu: Path, action: str, images: Path, *arguments: str) -> None:
    command = [str(criu), action, "-D", str(images), "-o", f"{action}.log", "-v4", *arguments]
    finished = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
    log = images / f"{action}.log"
    tail = log.read_text(errors="replace")[-3000:] if log.exists() else ""
    assert finished.returncode == 0, f"{command}: {finished.stderr.decode()}\n{tail}"


async def migrate(criu: Path, check: SelfCheck, images: Path) -> None:
    await run_criu(criu, "dump", images, "-t", str(check.pid))
    await check.wait_gone()
    await run_criu(criu, "restore", images, "-d")


@pytest.mark.parametrize(("threads", "procs"), [(1, 1), (3, 1), (2, 3)])
async def test_survives_dump_and_restore(
    criu: Path, start_memcheck: StartMemcheck, node_dir: Path, threads: int, procs: int
) -> None:
    check = await start_memcheck(size=16 * MIB, threads=threads, procs=procs, compressible=50)
    await check.wait_progress()
    await migrate(criu, check, node_dir)
    await check.wait_progress()
    await check.verify_memory()
    assert check.alive() and len(check.pids()) == procs
    check.assert_single_history()
    await check.finish()
    check.assert_single_history()


async def test_travels_there_and_back(criu: Path, start_memcheck: StartMemcheck, node_dir: Path) -> None:
    check = await start_memcheck(idle=True)
    for journey in ("there", "back"):
        images = node_dir / journey
        images.mkdir()
        await migrate(criu, check, images)
        await check.wait_progress()
    await check.verify_memory()
    check.assert_single_history()


async def test_listening_socket_survives(criu_latest: Path, start_memcheck: StartMemcheck, node_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    check = await start_memcheck(listen=port)
    await migrate(criu_latest, check, node_dir)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        assert int(await stream.receive_some(100)) > 0


async def test_second_copy_is_noticed(criu_latest: Path, start_memcheck: StartMemcheck, node_dir: Path) -> None:
    """The process runs on after a dump, dies, and its older state is restored: two histories from the dump on."""
    check = await start_memcheck()
    await run_criu(criu_latest, "dump", node_dir, "-t", str(check.pid), "--leave-running")
    await check.wait_progress()
    check.assert_single_history()
    os.kill(check.pid, signal.SIGKILL)
    await check.wait_gone()
    await run_criu(criu_latest, "restore", node_dir, "-d")
    await check.wait_progress()
    with pytest.raises(AssertionError, match=r"reached counter \d+ 2 times"):
        check.assert_single_history()


async def test_missing_step_is_noticed(start_memcheck: StartMemcheck) -> None:
    check = await start_memcheck()
    await check.wait_progress()
    with check.history_path.open("r+b") as history:
        history.seek(3 * HISTORY_RECORD.size)
        history.write(bytes(HISTORY_RECORD.size))
    with pytest.raises(AssertionError, match="reached counter 3 0 times"):
        check.assert_single_history()


def largest_mapping(pid: int) -> int:
    """Start of memcheck's memory: the largest private anonymous mapping."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    anonymous = re.findall(r"^([0-9a-f]+)-([0-9a-f]+) rw-p 00000000 00:00 0 *$", maps, re.MULTILINE)
    return max((int(end, 16) - int(start, 16), int(start, 16)) for start, end in anonymous)[1]


def flip_bit(pid: int, *, page: int, word: int) -> None:
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        address = largest_mapping(pid) + page * 4096 + word * 8
        memory.seek(address)
        byte = memory.read(1)[0]
        memory.seek(address)
        memory.write(bytes([byte ^ 1]))


def read_pages(pid: int, count: int) -> list[bytes]:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(largest_mapping(pid))
        return [memory.read(4096) for _ in range(count)]


async def test_wrong_byte_is_noticed(start_memcheck: StartMemcheck) -> None:
    check = await start_memcheck(idle=True)
    flip_bit(check.pid, page=7, word=1)
    with pytest.raises(AssertionError, match=r"ERROR .*page 7 word 1 holds"):
        await check.verify_memory()


async def test_dead_process_is_noticed(start_memcheck: StartMemcheck) -> None:
    check = await start_memcheck()
    os.kill(check.pid, signal.SIGKILL)
    await check.wait_gone()
    assert not check.alive()
    with pytest.raises(AssertionError, match="to advance"):
        await check.wait_progress(deadline=0.1)


async def test_stopped_process_is_noticed(start_memcheck: StartMemcheck) -> None:
    check = await start_memcheck()
    os.kill(check.pid, signal.SIGSTOP)
    with pytest.raises(AssertionError, match="to advance"):
        await check.wait_progress(steps=100, deadline=0.1)
    assert check.alive()


async def test_memory_is_as_compressible_as_asked(start_memcheck: StartMemcheck) -> None:
    check = await start_memcheck(idle=True, compressible=75)
    pages = read_pages(check.pid, 100)
    repeated = sum(len({*struct.unpack("<512Q", page)}) == 512 - 384 + 1 for page in pages)
    assert repeated == len(pages)
    assert len(set(pages)) == len(pages)


@pytest.mark.parametrize(
    ("leak", "complaint"),
    [
        ("os.open('/dev/null', os.O_RDONLY)", r"descriptors left open: \{\d+: '/dev/null'\}"),
        (
            "os.fork() or os._exit(0); os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)",
            r"processes left behind: \{\d+: '.*zombie",
        ),
        ("os.system('sleep 1000 >/dev/null 2>&1 </dev/null &')", r"processes left behind: \{\d+: 'sleep 1000 "),
    ],
    ids=["descriptor", "zombie", "orphan"],
)
def test_what_a_test_leaves_is_named(repo_root: Path, tmp_path: Path, leak: str, complaint: str) -> None:
    leaky_test = tmp_path / "test_leak.py"
    leaky_test.write_text(f"import os\nimport pytest\n@pytest.mark.t1\ndef test_leak() -> None:\n    {leak}\n")
    options = ["-c", "pyproject.toml", "--rootdir=.", "-p", "tests.conftest", "-p", "no:cacheprovider"]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(leaky_test)],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 1
    assert re.search(complaint, finished.stdout), finished.stdout
