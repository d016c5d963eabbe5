"""One error comes out as itself, several stay together."""

import pytest
import trio

from imgnode.nursery import flat_nursery

pytestmark = pytest.mark.t0


async def fail(error: Exception) -> None:
    raise error


async def test_a_task_s_error_comes_out_as_itself() -> None:
    cause = KeyError("cause")
    with pytest.raises(ValueError, match="alone") as caught:
        async with flat_nursery() as outer:
            outer.start_soon(trio.sleep_forever)
            async with flat_nursery() as inner:
                error = ValueError("alone")
                error.__cause__ = cause
                inner.start_soon(fail, error)
    assert caught.value.__cause__ is cause


async def test_the_block_s_error_comes_out_as_itself() -> None:
    with pytest.raises(ValueError, match="block"):
        async with flat_nursery():
            raise ValueError("block")


async def test_several_errors_stay_together() -> None:
    with pytest.raises(ExceptionGroup) as caught:
        async with flat_nursery() as nursery:
            nursery.start_soon(fail, ValueError("one"))
            nursery.start_soon(fail, KeyError("two"))
    assert {type(error) for error in caught.value.exceptions} == {ValueError, KeyError}


async def test_cancellation_passes() -> None:
    with trio.CancelScope() as scope:
        async with flat_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()
    assert scope.cancelled_caught


async def test_several_cancelled_tasks_are_one_cancellation() -> None:
    with trio.CancelScope() as scope, pytest.raises(trio.Cancelled):
        async with flat_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            nursery.start_soon(trio.sleep_forever)
            scope.cancel()


async def test_several_that_fail_for_one_reason() -> None:
    """As those who wait for answers when the link is lost."""

    async def fail() -> None:
        raise ValueError("the link is lost")

    with pytest.raises(ValueError, match="the link is lost"):
        async with flat_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(fail)
