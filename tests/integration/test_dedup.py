"""`--dedup`: what the cache has does not cross the link; the process verifies every byte of its memory."""

from pathlib import Path

import pytest

from tests.nodes import Node, Nodes, assert_runs, migrate, start_cache, summary

pytestmark = pytest.mark.t2


@pytest.mark.parametrize("compress", ["off", "3"])
async def test_a_tree_that_shares_memory(nodes: Nodes, a: Node, b: Node, criu: Path, compress: str) -> None:
    """Its processes have the same program and library; what they have of zeroes costs nothing."""
    check = await nodes.start_memcheck(a, size=8 << 20, procs=3, threads=2)
    cache = await start_cache(b, "--allow-restore", criu=criu)
    done = await migrate(a, check.pid, cache.address, criu, "--json", "--dedup", "--compress", compress)
    assert done.code == 0, done.output
    found = summary(done)
    assert found["pages"]["sent"] > 3 * (8 << 20) // 4096 * 0.9
    assert found["pages"]["skipped"] > 0
    others = found["image_bytes"] - found["bytes_by_kind"]["pages"]
    assert found["wire_bytes"] < found["pages"]["sent"] * 4096 + others + 100_000
    await assert_runs(check, b)
    await check.finish()
    assert await cache.stop() == 0


async def test_memory_is_given_back_as_it_is_read(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=16 << 20, procs=2)
    cache = await start_cache(b, "--allow-restore", "--release", "read", criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--dedup")
    assert done.code == 0, done.output
    assert "pages    " in done.stdout
    await assert_runs(check, b)
    await check.finish()
