"""Waiting for a condition that synchronous code makes true.

trio.Condition needs a checkpoint to notify; what comes in on the link is handled without one. All code runs in one
thread, so a condition is looked at and waited for without anything in between.
"""

from collections.abc import Callable

import trio


class Changes:
    """Tasks wait here until a predicate holds; whoever changes something says so."""

    def __init__(self) -> None:
        self._event = trio.Event()

    def notify(self) -> None:
        """Something has changed: all waiting tasks look again."""
        self._event.set()
        self._event = trio.Event()

    async def wait_until(self, predicate: Callable[[], bool]) -> None:
        """Return as soon as `predicate` holds (at once if it does)."""
        while not predicate():
            await self._event.wait()
