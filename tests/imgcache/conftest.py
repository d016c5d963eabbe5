"""A store of images, empty."""

from collections.abc import AsyncIterator

import pytest

from imgcache.arena import Arena, MemoryBudget
from imgcache.store import ImageStore


@pytest.fixture
async def store() -> AsyncIterator[ImageStore]:
    arena = Arena(MemoryBudget(None), None)
    yield ImageStore(arena)
    arena.close()
