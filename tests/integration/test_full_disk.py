"""A disk without room for a journal: the session is refused, the others go on, and one that was opened can end."""

from pathlib import Path

import pytest

from imgnode.journal import RESERVED
from tests.nodes import Node, Nodes, assert_runs, dump, migrate, restore, start_cache, start_proxy

pytestmark = pytest.mark.t2


async def _disk(node: Node, *, room: int) -> Path:
    """A small file system of the node's own."""
    place = node.directory / "small"
    place.mkdir(mode=0o700)
    assert (await node.run("mount", "-t", "tmpfs", "-o", f"size={room},mode=700", "tmpfs", place)).code == 0
    return place


async def _fill(node: Node, place: Path) -> None:
    filled = await node.run("dd", "if=/dev/zero", f"of={place}/fill", "bs=4096")
    assert "No space left" in filled.stderr


async def test_no_room_at_the_source(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    place = await _disk(a, room=RESERVED // 2)
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    words = ["imgproxy", "migrate", check.pid, "--to", cache.address, "--criu", criu_latest]
    refused = await a.run(*words, "--journal", place)
    assert refused.code == 1
    assert refused.stderr.startswith(f"imgproxy: {place}/")
    assert refused.stderr.endswith(".journal: the journal cannot be written: No space left on device\n")
    await assert_runs(check, a)
    assert (await migrate(a, check.pid, cache.address, criu_latest)).code == 0
    await assert_runs(check, b)


async def test_no_room_at_the_destination(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """There is room for one session, which is open; the next is refused."""
    place = await _disk(b, room=RESERVED * 3 // 2)
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--journal", place)
    first = await start_proxy(a, cache.address)
    refused = await a.run("imgproxy", "send", a.directory, "--to", cache.address)
    assert refused.code == 1
    assert f"imgproxy: {place}/" in refused.stderr
    assert "the journal cannot be written: No space left on device" in refused.stderr
    restoring = restore(b, criu_latest)
    assert await dump(a, criu_latest, check.pid).wait() == 0
    assert await restoring.wait() == 0
    assert (await first.ended()).code == 0
    await assert_runs(check, b)
    assert await cache.stop() == 0


async def test_the_disks_fill_up_meanwhile(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """What follows the first record has its room already, on both nodes."""
    check = await nodes.start_memcheck(a)
    places = [await _disk(node, room=RESERVED * 3 // 2) for node in (a, b)]
    cache = await start_cache(b, "--journal", places[1])
    proxy = await start_proxy(a, cache.address, "--journal", places[0])
    for node, place in zip((a, b), places, strict=True):
        await _fill(node, place)
    restoring = restore(b, criu_latest)
    assert await dump(a, criu_latest, check.pid).wait() == 0
    assert await restoring.wait() == 0
    done = await proxy.ended()
    assert done.code == 0, done.output
    await assert_runs(check, b)
    assert "not written down" not in cache.stderr + done.stderr
    assert await cache.stop() == 0
