"""Whether a restored process runs, by what the kernel shows of its tasks and the images say of their memory."""

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from imgcache.leftovers import Leftovers
from imgcache.session import Session
from tests.playbook import open_session, put_image
from tests.transform.synthetic import mm, vma

pytestmark = pytest.mark.t1

EVERYWHERE, NOWHERE = vma(0x1000, 1 << 47), vma(0x1000, 0x2000)
#: A process that forks, tells its pid and its child's, and waits, as does the child, for the end of its input.
FORKING = """
import os, sys
child = os.fork()
if child:
    print(os.getpid(), child, flush=True)
sys.stdin.read()
if child:
    os.wait()
"""


@contextmanager
def forking() -> Iterator[tuple[int, int]]:
    """The pids of such a process and its child."""
    with subprocess.Popen(
        [sys.executable, "-S", "-c", FORKING], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        parent, child = map(int, process.stdout.readline().split())
        yield parent, child


@pytest.fixture
async def session(node_dir: Path) -> AsyncIterator[Session]:
    with open_session(node_dir) as made:
        yield made


async def runs(session: Session, root: int) -> bool:
    return await Leftovers(None, set()).runs(session, root)


async def test_in_memory_that_was_dumped_it_runs(session: Session) -> None:
    with forking() as tasks:
        for pid in tasks:
            await put_image(session, f"mm-{pid}.img", mm(EVERYWHERE))
        assert await runs(session, tasks[0])


async def test_a_child_that_was_forked_since_runs(session: Session) -> None:
    """No image knows it: only what runs can have forked it."""
    with forking() as (parent, _):
        await put_image(session, f"mm-{parent}.img", mm(EVERYWHERE))
        assert await runs(session, parent)


@pytest.mark.parametrize("stuck", [0, 1])
async def test_one_task_outside_of_its_memory_is_stuck(session: Session, stuck: int) -> None:
    with forking() as tasks:
        for number, pid in enumerate(tasks):
            await put_image(session, f"mm-{pid}.img", mm(NOWHERE if number == stuck else EVERYWHERE))
        assert not await runs(session, tasks[0])


async def test_nobody_runs(session: Session) -> None:
    assert not await runs(session, 0)
    with forking() as (parent, _):
        pass
    assert not await runs(session, parent)
