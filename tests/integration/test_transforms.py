"""Images are changed on their way."""

from pathlib import Path

import pytest

from tests.nodes import Node, Nodes, assert_runs, migrate, start_cache

pytestmark = pytest.mark.t2


async def test_the_program_is_elsewhere_at_the_destination(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    old, new = nodes.make_node_dir() / "memcheck", nodes.make_node_dir() / "memcheck"
    for path in (old, new):
        path.write_bytes(nodes.programs.memcheck.read_bytes())
        path.chmod(0o700)
    check = await nodes.start_memcheck(a, program=old)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--map-path", f"{old.parent}:{new.parent}")
    assert done.code == 0, done.output
    assert Path(f"/proc/{check.pids()[0]}/exe").readlink() == new
    assert str(old) not in Path(f"/proc/{check.pids()[0]}/maps").read_text()
    await assert_runs(check, b)


async def test_a_path_that_nothing_has_is_refused(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--map-path", "/nowhere/at/all:/there")
    assert done.code == 1
    assert "/nowhere/at/all" in done.output
    await assert_runs(check, a)


async def test_a_listening_port_is_changed(nodes: Nodes, criu_latest: Path) -> None:
    """Only the newest CRIU dumps network sockets here; nothing is connected, so nothing needs locking."""
    a, b = await nodes.make(network=True), await nodes.make(network=True)
    here, there = await nodes.join(a, b)
    assert here != there
    check = await nodes.start_memcheck(a, listen=7111)
    cache = await start_cache(b, "--allow-restore", "--insecure", criu=criu_latest, listen=f"{there}:7000")
    options = ["--insecure", "--tcp-listen-remap", "7111:7222", "--network-lock", "skip", "--tcp-established"]
    done = await migrate(a, check.pid, cache.address, criu_latest, *options)
    assert done.code == 0, done.output
    await assert_runs(check, b)
    listening = (await b.run("cat", "/proc/net/tcp")).stdout
    assert f":{7222:04X} 00000000:0000 0A" in listening
    assert f":{7111:04X} 00000000:0000 0A" not in listening
