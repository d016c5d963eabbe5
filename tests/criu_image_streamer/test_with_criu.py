"""The command between the real `criu dump --stream` and `criu restore --stream`, as a shell would join them."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from imgnode.unix import close_all
from tests.conftest import StartMemcheck
from tests.criu_image_streamer.checkpoint import files
from tests.programs.selfcheck import SelfCheck

pytestmark = pytest.mark.t2

MIB = 1 << 20
COMMAND = [sys.executable, "-m", "criu_image_streamer"]
COMPRESS = "import sys, zstandard as z; z.ZstdCompressor().copy_stream(sys.stdin.buffer, sys.stdout.buffer)"
EXPAND = "import sys, zstandard as z; z.ZstdDecompressor().copy_stream(sys.stdin.buffer, sys.stdout.buffer)"


@dataclass
class Running:
    """One run of the command."""

    process: trio.Process
    progress: trio.lowlevel.FdStream
    lines: list[str] = field(default_factory=list)

    async def tell(self, count: int) -> list[str]:
        """The first `count` lines of progress."""
        text = "\n".join(self.lines) + "\n" if self.lines else ""
        with trio.fail_after(30):
            while text.count("\n") < count:
                part = await self.progress.receive_some()
                assert part, f"the command ended after telling {text!r}"
                text += part.decode()
        self.lines = text.splitlines()
        return self.lines

    async def end(self) -> int:
        with trio.fail_after(30):
            return await self.process.wait()


@asynccontextmanager
async def streamer(
    operation: str, directory: Path, fds: Sequence[int], *options: str, more: Sequence[int] = ()
) -> AsyncIterator[Running]:
    """Run the command with the shards `fds`, and `more` descriptors that its options name."""
    reader, writer = os.pipe()
    shards = ",".join(map(str, fds))
    process = await trio.lowlevel.open_process(
        [*COMMAND, "-D", str(directory), "-s", shards, "-p", str(writer), *options, operation],
        pass_fds=[*fds, *more, writer],
        stdin=subprocess.DEVNULL,
    )
    os.close(writer)
    async with trio.lowlevel.FdStream(reader) as progress:
        try:
            yield Running(process, progress)
        finally:
            if process.returncode is None:
                process.kill()
                with trio.CancelScope(shield=True):
                    await process.wait()


async def criu_run(criu: Path, action: str, directory: Path, *options: str) -> int:
    command = [str(criu), action, "--stream", "-D", str(directory), "-o", f"{action}.log", "-v4", *options]
    ended = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
    return ended.returncode


def log(directory: Path, action: str) -> str:
    return (directory / f"{action}.log").read_text(errors="replace")[-3000:]


async def capture(criu: Path, check: SelfCheck, directory: Path, fds: Sequence[int]) -> list[str]:
    """Dump `check` into the shards; what was told."""
    async with streamer("capture", directory, fds) as running:
        await running.tell(1)
        assert await criu_run(criu, "dump", directory, "-t", str(check.pid)) == 0, log(directory, "dump")
        assert await running.end() == 0
        lines = await running.tell(3)
    await check.wait_gone()
    return lines


async def restore(criu: Path, directory: Path, fds: Sequence[int], *options: str) -> list[str]:
    """Serve the shards to a restore; what was told."""
    async with streamer("serve", directory, fds, *options) as running:
        lines = await running.tell(2)
        assert await criu_run(criu, "restore", directory, "-d") == 0, log(directory, "restore")
        assert await running.end() == 0
    return lines


async def runs_on(check: SelfCheck) -> None:
    await check.wait_progress()
    await check.verify_memory()
    check.assert_single_history()


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_parked_in_files(criu: Path, start_memcheck: StartMemcheck, node_dir: Path, count: int) -> None:
    check = await start_memcheck(size=24 * MIB, threads=2, procs=2)
    paths = [node_dir / f"shard-{number}" for number in range(count)]
    with files(paths, os.O_CREAT | os.O_WRONLY) as fds:
        lines = await capture(criu, check, node_dir, fds)
    assert lines[:2] == ["socket-init", "checkpoint-start"]
    sizes = [shard["size"] for shard in json.loads(lines[2])["shards"]]
    assert sizes == [path.stat().st_size for path in paths]
    assert sum(sizes) > 48 * MIB
    with files(paths, os.O_RDONLY) as fds:
        lines = await restore(criu, node_dir, fds)
    assert [shard["size"] for shard in json.loads(lines[0])["shards"]] == sizes
    assert lines[1:] == ["socket-init"]
    await runs_on(check)


@asynccontextmanager
async def filtered(program: str, source: int, target: int) -> AsyncIterator[None]:
    """A program between two descriptors, which are closed here once it has them. It must end well."""
    process = await trio.lowlevel.open_process([sys.executable, "-c", program], stdin=source, stdout=target)
    os.close(source)
    os.close(target)
    yield
    with trio.fail_after(30):
        assert await process.wait() == 0


@pytest.mark.parametrize("count", [1, 3])
async def test_straight_through_compressors(
    criu_latest: Path, start_memcheck: StartMemcheck, node_dir: Path, count: int
) -> None:
    """Capture and serve at once, joined by pipes with a compressor and its opposite in each."""
    check = await start_memcheck(size=24 * MIB, compressible=50)
    source, target = node_dir / "source", node_dir / "target"
    source.mkdir()
    plain, packed, unpacked = ([os.pipe() for _ in range(count)] for _ in range(3))
    async with AsyncExitStack() as stack:
        for (plain_out, _), (packed_out, packed_in), (_, unpacked_in) in zip(plain, packed, unpacked, strict=True):
            await stack.enter_async_context(filtered(COMPRESS, plain_out, packed_in))
            await stack.enter_async_context(filtered(EXPAND, packed_out, unpacked_in))
        readers, writers = [reader for reader, _ in unpacked], [writer for _, writer in plain]
        async with streamer("serve", target, readers) as serving:
            close_all(readers)
            await capture(criu_latest, check, source, writers)
            close_all(writers)
            await serving.tell(2)
            assert await criu_run(criu_latest, "restore", target, "-d") == 0, log(target, "restore")
            assert await serving.end() == 0
    await runs_on(check)


async def test_extracted_and_restored_from_the_directory(
    criu: Path, start_memcheck: StartMemcheck, node_dir: Path
) -> None:
    check = await start_memcheck(size=8 * MIB)
    images = node_dir / "images"
    with files([node_dir / "shard"], os.O_CREAT | os.O_RDWR) as fds:
        await capture(criu, check, node_dir, fds)
        os.lseek(fds[0], 0, os.SEEK_SET)
        async with streamer("extract", images, fds) as running:
            assert await running.end() == 0
    command = [str(criu), "restore", "-D", str(images), "-d", "-o", "restore.log"]
    await trio.run_process(command)
    await runs_on(check)


async def test_an_external_file_goes_along(criu_latest: Path, start_memcheck: StartMemcheck, node_dir: Path) -> None:
    """The caller makes it once the program is stopped, and is given it back before CRIU restores."""
    check = await start_memcheck(size=8 * MIB)
    data = os.urandom(3 * MIB)
    shard, target = node_dir / "shard", node_dir / "fs.tar"
    reader, writer = os.pipe()
    with files([shard], os.O_CREAT | os.O_WRONLY) as fds:
        async with streamer("capture", node_dir, fds, "-e", f"fs.tar:{reader}", more=[reader]) as running:
            os.close(reader)
            await running.tell(1)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(criu_run, criu_latest, "dump", node_dir, "-t", str(check.pid))
                await running.tell(2)
                async with trio.lowlevel.FdStream(writer) as tar:
                    await tar.send_all(data)
            assert await running.end() == 0
    await check.wait_gone()
    with files([shard], os.O_RDONLY) as fds, files([target], os.O_CREAT | os.O_WRONLY) as [fd]:
        async with streamer("serve", node_dir, fds, "-e", f"fs.tar:{fd}", more=[fd]) as running:
            await running.tell(2)
            assert target.read_bytes() == data
            assert await criu_run(criu_latest, "restore", node_dir, "-d") == 0, log(node_dir, "restore")
            assert await running.end() == 0
    await runs_on(check)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
        return port


async def test_listens_on_another_port(criu_latest: Path, start_memcheck: StartMemcheck, node_dir: Path) -> None:
    old, new = free_port(), free_port()
    check = await start_memcheck(listen=old)
    with files([node_dir / "shard"], os.O_CREAT | os.O_WRONLY) as fds:
        await capture(criu_latest, check, node_dir, fds)
    with files([node_dir / "shard"], os.O_RDONLY) as fds:
        await restore(criu_latest, node_dir, fds, "--tcp-listen-remap", f"{old}:{new}")
    async with await trio.open_tcp_stream("127.0.0.1", new) as stream:
        assert int(await stream.receive_some(100)) > 0
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", old)
    await runs_on(check)


async def test_a_failed_dump_is_a_failed_capture(
    criu_latest: Path, start_memcheck: StartMemcheck, node_dir: Path
) -> None:
    """The shard's reader goes away in the middle: both programs say no, and the process runs on where it was."""
    check = await start_memcheck(size=24 * MIB)
    reader, writer = os.pipe()
    async with streamer("capture", node_dir, [writer]) as running:
        os.close(writer)
        await running.tell(1)
        async with trio.open_nursery() as nursery:

            async def leave() -> None:
                await running.tell(2)
                os.close(reader)

            nursery.start_soon(leave)
            assert await criu_run(criu_latest, "dump", node_dir, "-t", str(check.pid)) != 0
        assert await running.end() == 1
    await runs_on(check)


async def test_a_cut_shard_never_reaches_criu(criu_latest: Path, start_memcheck: StartMemcheck, node_dir: Path) -> None:
    check = await start_memcheck(size=8 * MIB)
    paths = [node_dir / "shard-0", node_dir / "shard-1"]
    with files(paths, os.O_CREAT | os.O_WRONLY) as fds:
        await capture(criu_latest, check, node_dir, fds)
    whole = paths[0].read_bytes()
    for given, content in ((paths, whole[:-1]), (paths, whole[: len(whole) // 2]), (paths[1:], whole)):
        paths[0].write_bytes(content)
        with files(given, os.O_RDONLY) as fds:
            async with streamer("serve", node_dir, fds) as running:
                assert await running.end() == 1
                assert await running.progress.receive_some() == b""
    with files(paths, os.O_RDONLY) as fds:
        await restore(criu_latest, node_dir, fds)
    await runs_on(check)
