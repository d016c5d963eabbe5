"""When the memory of images is given back: by default when the process runs, or else as the restore reads them."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.integration.image_memory import held
from tests.nodes import Node, Nodes, assert_runs, dump, restore, start_cache, start_proxy

pytestmark = pytest.mark.t2

MIB = 1 << 20
SIZE = 16 * MIB


async def _status(node: Node) -> dict[str, Any]:
    told = await node.run("imgcache", "status", "-D", node.directory, "--json")
    found: dict[str, Any] = json.loads(told.stdout)
    return found


@pytest.mark.parametrize("release", ["read", "running"])
async def test_when_the_memory_is_given_back(nodes: Nodes, a: Node, b: Node, criu_latest: Path, release: str) -> None:
    """The proxy is stopped, so that the restored process waits for its word: all is read and nothing runs yet."""
    check = await nodes.start_memcheck(a, size=SIZE)
    cache = await start_cache(b, "--release", release)
    proxy = await start_proxy(a, cache.address, "--wait-restored")
    dumping = dump(a, criu_latest, check.pid)
    await cache.wait_log("complete")
    assert (await _status(b))["memory"] > SIZE
    assert held(cache) > SIZE
    proxy.signal(signal.SIGSTOP)
    restoring = restore(b, criu_latest)
    await cache.wait_log("restored")
    told = await _status(b)
    assert told["state"] == "restored"
    if release == "read":
        assert max(told["memory"], held(cache)) < MIB
    else:
        assert min(told["memory"], held(cache)) > SIZE
    proxy.signal(signal.SIGCONT)
    assert await restoring.wait() == 0
    assert await dumping.wait() == 0
    assert (await proxy.ended()).code == 0
    await assert_runs(check, b)
    assert await cache.stop() == 0
