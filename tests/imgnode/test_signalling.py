"""Waiting for what synchronous code makes true."""

import pytest
import trio
import trio.testing

from imgnode.signalling import Changes

pytestmark = pytest.mark.t0


async def test_what_holds_already_is_not_waited_for() -> None:
    with trio.fail_after(0):
        await Changes().wait_until(lambda: True)


async def test_all_who_wait_look_again_at_each_change() -> None:
    changes, number, seen = Changes(), 0, list[int]()

    async def wait_for(wanted: int) -> None:
        await changes.wait_until(lambda: number >= wanted)
        seen.append(wanted)

    async with trio.open_nursery() as nursery:
        for wanted in (3, 1, 2, 2):
            nursery.start_soon(wait_for, wanted)
        await trio.testing.wait_all_tasks_blocked()
        for due in ([1], [1, 2, 2], [1, 2, 2, 3]):
            number += 1
            changes.notify()
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(seen) == due


async def test_a_change_that_is_taken_back_before_anybody_looks_is_not_seen() -> None:
    changes, holds = Changes(), False
    async with trio.open_nursery() as nursery:
        nursery.start_soon(changes.wait_until, lambda: holds)
        await trio.testing.wait_all_tasks_blocked()
        holds = True
        changes.notify()
        holds = False
        await trio.testing.wait_all_tasks_blocked()
        assert nursery.child_tasks
        nursery.cancel_scope.cancel()
