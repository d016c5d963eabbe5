"""Waiting for real processes in trio."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from imgnode import proc, process

pytestmark = pytest.mark.t1


@pytest.fixture
def sleepers() -> Iterator[list["subprocess.Popen[bytes]"]]:
    children = [subprocess.Popen(["sleep", "1000"]) for _ in range(3)]
    yield children
    for child in children:
        child.kill()
        child.wait()


def _open_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_tree(sleepers: list["subprocess.Popen[bytes]"]) -> None:
    assert await process.tree(sleepers[0].pid) == [proc.identify(sleepers[0].pid)]
    found = {one.pid for one in await process.tree(os.getpid())}
    assert {child.pid for child in sleepers} <= found


async def test_wait_dead_returns_at_the_end_of_the_last(sleepers: list["subprocess.Popen[bytes]"]) -> None:
    ids = [proc.identify(child.pid) for child in sleepers]
    before = _open_fds()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(process.wait_dead, ids, trio.current_time() + 10)
        for child in sleepers:
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            child.send_signal(signal.SIGKILL)
    assert not any(proc.is_alive(one) for one in ids)
    assert _open_fds() == before


async def test_wait_dead_has_a_deadline(sleepers: list["subprocess.Popen[bytes]"]) -> None:
    before = _open_fds()
    with pytest.raises(trio.TooSlowError):
        await process.wait_dead([proc.identify(sleepers[0].pid)], trio.current_time() + 0.02)
    assert _open_fds() == before


async def test_wait_dead_of_the_dead_and_of_nobody(sleepers: list["subprocess.Popen[bytes]"]) -> None:
    identity = proc.identify(sleepers[0].pid)
    sleepers[0].kill()
    sleepers[0].wait()
    await process.wait_dead([identity], trio.current_time() + 1)
    await process.wait_dead([], trio.current_time() + 1)


async def test_watch(sleepers: list["subprocess.Popen[bytes]"]) -> None:
    child = sleepers[0]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.watch, child.pid)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            child.kill()
        await process.watch(child.pid)
        child.wait()
        await process.watch(child.pid)


async def test_a_cancelled_watch_leaves_no_descriptor(sleepers: list["subprocess.Popen[bytes]"]) -> None:
    before = _open_fds()
    with trio.move_on_after(0.02) as scope:
        await process.watch(sleepers[0].pid)
    assert scope.cancelled_caught
    assert _open_fds() == before
