"""Files that are closed, told by the kernel."""

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from imgnode.inotify import ClosedFiles
from imgnode.nursery import flat_nursery

pytestmark = pytest.mark.t1


async def test_a_file_is_told_when_it_is_closed(tmp_path: Path) -> None:
    closed = ClosedFiles(tmp_path)
    told = trio.Event()

    async def wait() -> None:
        await closed.wait()
        told.set()

    async with flat_nursery() as nursery:
        nursery.start_soon(wait)
        with (tmp_path / "one").open("w") as file:
            file.write("not yet")
            file.flush()
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert not told.is_set() and closed.take() == []
    assert closed.take() == ["one"]
    assert closed.take() == []
    closed.close()


async def test_only_writers_count_and_each_time(tmp_path: Path) -> None:
    (tmp_path / "read").write_text("")
    closed = ClosedFiles(tmp_path)
    (tmp_path / "read").read_text()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "two").write_text("")
    for name in ("a", "b", "a"):
        (tmp_path / name).write_text("")
    assert closed.take() == ["a", "b", "a"]
    closed.close()
    closed.close()


async def test_the_last_descriptor_counts(tmp_path: Path) -> None:
    """As of a child that was given one."""
    closed = ClosedFiles(tmp_path)
    fd = os.open(tmp_path / "one", os.O_WRONLY | os.O_CREAT)
    other = os.dup(fd)
    os.close(fd)
    assert closed.take() == []
    os.close(other)
    assert closed.take() == ["one"]
    closed.close()


async def test_more_than_one_read_takes(tmp_path: Path) -> None:
    closed = ClosedFiles(tmp_path)
    names = [f"{number:03}" + "n" * (number % 250) for number in range(300)]
    for name in names:
        (tmp_path / name).write_text("")
    assert closed.take() == names
    closed.close()


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        ClosedFiles(tmp_path / "missing")
    assert caught.value.filename == str(tmp_path / "missing")
