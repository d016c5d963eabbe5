"""A nursery whose single error comes out as itself.

trio wraps whatever leaves a nursery in an ExceptionGroup. Our tasks fail for one reason at a time, and a user is to
see that reason, also where several have asked and all are told the same; where they fail for several the group stays.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


@asynccontextmanager
async def flat_nursery() -> AsyncIterator[trio.Nursery]:
    """`trio.open_nursery`, with a group of one exception unwrapped."""
    try:
        async with trio.open_nursery() as nursery:
            yield nursery
    except BaseExceptionGroup as group:
        single = _single(group)
        if single is None:
            raise
        raise single from single.__cause__


def _single(error: BaseException) -> BaseException | None:
    while isinstance(error, BaseExceptionGroup):
        if len(error.exceptions) != 1 and error.split(trio.Cancelled)[1] is not None and not _is_one_reason(error):
            return None
        error = error.exceptions[0]
    return error


def _is_one_reason(group: BaseExceptionGroup[BaseException]) -> bool:
    return len({(type(one), str(one)) for one in group.exceptions}) == 1
