"""CRIU is killed as it tries what the kernel does, and leaves a child that keeps its sockets open: it is ended."""

from pathlib import Path

import pytest

from tests.fake_rounds import planned
from tests.integration.test_kill import assert_all_ends, restartable_cache
from tests.nodes import Node, Nodes, assert_runs, dump, start_cache, start_migrate, start_proxy, until

pytestmark = pytest.mark.t3

#: The CRIU of a test: a dump is killed at a system call. `-D`: strace is its child, not its parent.
TRACED = """#!/bin/sh
[ "$1" = dump ] || exec {criu} "$@"
waits=1
case " $* " in *" --stream "*) waits=2 ;; esac # the first is for its action script
exec strace -D -o /dev/null --inject={call}:signal=KILL:when={when} {criu} "$@"
"""


@pytest.fixture(params=["ptrace", "wait4"], ids=["before it is traced", "traced"])
def killed(request: pytest.FixtureRequest, node_dir: Path, criu_latest: Path) -> Path:
    """A CRIU that is killed right after it has forked, before or when it traces its child."""
    path = node_dir / "killed"
    path.write_text(
        TRACED.format(criu=criu_latest, call=request.param, when="$waits" if request.param == "wait4" else 1)
    )
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("rounds", [False, True], ids=["stream", "rounds"])
async def test_it_holds_up_no_migration(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, killed: Path, node_dir: Path, rounds: bool
) -> None:
    check = await nodes.start_memcheck(a, size=1 << 20)
    cache = await restartable_cache(b, 0, criu_latest)
    command = planned(node_dir, killed, "good") if rounds else killed
    proxy = start_migrate(a, check.pid, cache.address, command, *(["--rounds", 1] if rounds else []))
    assert (await proxy.ended()).code == 1
    await until(lambda: not [one for one in a.processes().values() if "dump" in one], "the child to be ended")
    await assert_runs(check, a)
    await assert_all_ends(a, b, check, cache)


async def test_it_holds_up_no_dump_by_hand(nodes: Nodes, a: Node, b: Node, killed: Path) -> None:
    check = await nodes.start_memcheck(a, size=1 << 20)
    cache = await start_cache(b)
    proxy = await start_proxy(a, cache.address)
    assert await dump(a, killed, check.pid).wait() == -9
    done = await proxy.ended()
    assert done.code == 1 and "criu dump ended before the hand-over" in done.output
    await until(lambda: not [one for one in a.processes().values() if "dump" in one], "the child to be ended")
    await assert_runs(check, a)
    assert await cache.stop() == 0
