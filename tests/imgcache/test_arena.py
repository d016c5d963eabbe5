"""Where image bytes lie: memory until its limit, then the spool, then an end with a clear line."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgcache.arena import Arena, Extent, MemoryBudget, StoreFull, pread_all, punch_hole, pwrite_all
from imgwire.errors import UsageError
from tests.playbook import random_bytes

pytestmark = pytest.mark.t1

PAGE = 4096


@pytest.fixture
def small_disk(node_dir: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    directory = node_dir / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


async def put(arena: Arena, data: bytes, after: Extent | None = None) -> Extent:
    extent = arena.reserve(len(data), after)
    await arena.fill(extent, 0, data)
    return extent


async def test_bytes_are_found_where_they_were_put() -> None:
    budget = MemoryBudget(None)
    arena = Arena(budget, None)
    first, second = random_bytes(5000, 1), random_bytes(10, 2)
    one = await put(arena, first)
    two = await put(arena, second)
    assert two.offset == 2 * PAGE  # each image begins on a page, so it can be given back
    assert pread_all(one.fd, one.length, one.offset) == first
    assert pread_all(two.fd, two.length, two.offset) == second
    assert budget.used == arena.memory_bytes == 2 * PAGE + 10
    arena.close()
    assert budget.used == 0


async def test_what_continues_an_image_lies_right_behind_it() -> None:
    arena = Arena(MemoryBudget(None), None)
    one = await put(arena, b"x" * 100)
    two = await put(arena, b"y" * 100, one)
    assert (two.offset, two.fd) == (100, one.fd)
    other = await put(arena, b"z")
    assert (await put(arena, b"x", two)).offset == 2 * PAGE  # somebody else came between
    assert other.offset == PAGE
    arena.close()


async def test_a_pipe_goes_into_its_place() -> None:
    arena = Arena(MemoryBudget(None), None)
    data = random_bytes(10_000)
    extent = arena.reserve(len(data), None)
    for start in (0, 4000):
        part = data[start : 4000 if not start else None]
        assert os.write(arena.pipe.writer, part) == len(part)
        await arena.fill_from_pipe(extent, start, len(part))
    assert pread_all(extent.fd, extent.length, extent.offset) == data
    arena.close()


async def test_past_the_limit_bytes_go_to_the_spool(node_dir: Path) -> None:
    budget = MemoryBudget(PAGE)
    arena = Arena(budget, node_dir)
    memory = await put(arena, b"m" * 3000)
    disk = await put(arena, b"d" * 3000, memory)
    assert disk.fd != memory.fd and pread_all(disk.fd, 3000, disk.offset) == b"d" * 3000
    assert arena.spool_bytes == 3000 and budget.used == 3000
    assert list(node_dir.iterdir()) == []  # the file has no name: nothing stays, whatever happens
    again = await put(arena, b"d" * 10, disk)
    assert (again.fd, again.offset) == (disk.fd, 3000)
    arena.close()


async def test_the_limit_is_for_all_sessions_together() -> None:
    budget = MemoryBudget(10_000)
    one, other = Arena(budget, None), Arena(budget, None)
    await put(one, bytes(9000))
    with pytest.raises(StoreFull, match="limit of 0 MiB is reached and there is no --spool directory"):
        other.reserve(2000, None)
    await put(other, bytes(1000))
    one.close()
    await put(other, bytes(5000))
    other.close()
    assert budget.used == 0


async def test_a_full_spool_is_named(small_disk: Path) -> None:
    arena = Arena(MemoryBudget(0), small_disk)
    await put(arena, bytes(128 << 10))
    with pytest.raises(StoreFull, match=f"no room left in the spool directory {small_disk}: No space left on device"):
        await put(arena, bytes(256 << 10))
    extent = arena.reserve(200 << 10, None)
    assert os.write(arena.pipe.writer, bytes(200 << 10)) == 200 << 10
    with pytest.raises(StoreFull, match="the spool directory"):
        await arena.fill_from_pipe(extent, 0, 200 << 10)
    arena.close()


async def test_a_spool_that_cannot_be_used_is_named(node_dir: Path) -> None:
    arena = Arena(MemoryBudget(0), node_dir / "gone")
    with pytest.raises(UsageError, match=r"gone: No such file or directory; choose another with --spool"):
        arena.reserve(1, None)
    arena.close()


async def test_memory_that_was_read_is_given_back() -> None:
    budget = MemoryBudget(None)
    arena = Arena(budget, None)
    extent = await put(arena, b"x" * (10 * PAGE + 100))
    arena.release(Extent(extent.fd, 100, 5 * PAGE))  # whole pages only: the first is shared with what came before
    assert budget.used == 6 * PAGE + 100
    assert os.fstat(extent.fd).st_blocks * 512 == 7 * PAGE
    assert pread_all(extent.fd, PAGE + 1, 0)[:100] == b"x" * 100
    assert pread_all(extent.fd, PAGE, PAGE) == bytes(PAGE)
    arena.release(Extent(extent.fd, 6 * PAGE, 10))
    assert budget.used == 6 * PAGE + 100
    arena.close()
    assert budget.used == 0


async def test_what_is_not_ours_is_never_given_back(node_dir: Path) -> None:
    path = node_dir / "archive"
    path.write_bytes(b"x" * 2 * PAGE)
    arena = Arena(MemoryBudget(None), None)
    with path.open("r+b") as file:
        arena.release(Extent(file.fileno(), 0, 2 * PAGE))
    assert path.read_bytes() == b"x" * 2 * PAGE
    arena.close()


async def test_space_for_what_did_not_come_is_used_again(node_dir: Path) -> None:
    budget = MemoryBudget(2 * PAGE)
    arena = Arena(budget, node_dir)
    for _ in range(100):
        arena.unreserve(arena.reserve(PAGE, None))
    assert budget.used == 0
    kept = await put(arena, bytes(2 * PAGE))
    arena.unreserve(Extent(kept.fd, 0, PAGE))  # not at the end: it stays
    assert budget.used == 2 * PAGE
    for _ in range(3):
        arena.unreserve(arena.reserve(PAGE, None))
    assert arena.spool_bytes == 0
    arena.close()


async def test_closing_gives_back_every_descriptor(node_dir: Path) -> None:
    arena = Arena(MemoryBudget(0), node_dir)
    await put(arena, b"x")
    arena.reset_pipe()
    arena.close()
    arena.close()


def test_whole_reads_and_writes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(3 * PAGE))
    with path.open("r+b") as file:
        pwrite_all(file.fileno(), b"abc", PAGE - 1)
        assert pread_all(file.fileno(), 5, PAGE - 2) == b"\0abc\0"
        with pytest.raises(OSError, match="10 bytes less"):
            pread_all(file.fileno(), 20, 3 * PAGE - 10)
        punch_hole(file.fileno(), 0, PAGE)
        assert pread_all(file.fileno(), 4, PAGE - 2) == b"\0\0bc"
        with pytest.raises(OSError, match="fallocate"):
            punch_hole(-1, 0, 1)


async def test_zeroes_take_no_memory_and_their_file_is_closed() -> None:
    before = set(Path("/proc/self/fd").iterdir())
    budget = MemoryBudget(0)
    arena = Arena(budget, None)
    first, second = arena.zeroes(0, 1 << 40), arena.zeroes(1 << 40, PAGE)
    assert first.fd == second.fd and second.offset == first.offset + first.length
    assert pread_all(second.fd, PAGE, second.offset) == bytes(PAGE)
    assert not arena.owns(first)
    arena.release(first)
    assert os.fstat(first.fd).st_blocks == 0 and budget.used == 0
    arena.close()
    assert set(Path("/proc/self/fd").iterdir()) == before
