"""A destination whose CRIU is older than the source's, and counts the pages in a pagemap by a field of its own."""

from pathlib import Path

import pytest

from tests.conftest import CACHE
from tests.nodes import Node, Nodes, assert_runs, migrate, start_cache

pytestmark = pytest.mark.t2

OLDER = CACHE / "bin/criu-stable"


@pytest.mark.parametrize("options", [(), ("--rounds", "1")], ids=["dump", "round"])
async def test_memory_arrives(nodes: Nodes, a: Node, b: Node, criu_latest: Path, options: tuple[str, ...]) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20)
    cache = await start_cache(b, "--allow-restore", criu=OLDER)
    done = await migrate(a, check.pid, cache.address, criu_latest, *options)
    assert done.code == 0, done.output
    await assert_runs(check, b)
    await check.finish()
