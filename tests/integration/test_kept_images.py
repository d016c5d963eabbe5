"""A cache that is stopped while it alone holds a process leaves its images as files."""

from pathlib import Path

import pytest

from tests.nodes import Node, Nodes, assert_runs, dump, start_cache, start_proxy

pytestmark = pytest.mark.t2


async def test_a_stopped_cache_leaves_the_only_images_as_files(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20)
    cache = await start_cache(b)
    proxy = await start_proxy(a, cache.address, "--session", "only")
    assert await dump(a, criu, check.pid).wait() == 0
    assert (await proxy.ended()).code == 0
    assert await cache.stop() == 0
    kept = await cache.wait_log("the only images of a process are now files", session="only")
    directory = Path(str(kept["directory"]))
    assert directory == b.directory / "only.images"
    restored = await b.run(criu, "restore", "-D", directory, "-d", "-o", "restore.log")
    assert restored.code == 0, (directory / "restore.log").read_text()
    await assert_runs(check, b)
