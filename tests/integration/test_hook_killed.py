"""The action script of a dump, or CRIU, is killed while the script ends the tree: between any two of its steps.

An action script of the user's, which CRIU runs right before ours, has strace hold ours at one of its system calls: a
record of the journal that goes to disk, or a signal to a task.
"""

import os
import signal
from pathlib import Path

import pytest

from tests.integration.test_kill import assert_all_ends, kill_all, restartable_cache, tree_in
from tests.nodes import Node, Nodes, assert_runs, start_migrate, until

pytestmark = pytest.mark.t3

#: Has the script that calls it get a signal at a system call, and returns when that is sure.
SCRIPT = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
strace -o "$0.log" -p $PPID --inject={call}:signal={signal}:when={when} </dev/null >/dev/null 2>&1 &
until grep -q '^TracerPid:.*[1-9]' /proc/$PPID/status; do :; done
"""
RECORD, SIGNAL = "fsync", "pidfd_send_signal"
PROCESSES = 2
#: The steps: `deciding` is written, two SIGSTOP; `killing`, two SIGKILL; and where the process runs afterwards.
STEPS = [
    (RECORD, 1, "a"),
    (SIGNAL, 1, "a"),
    (SIGNAL, 2, "a"),
    (RECORD, 2, "b"),
    (SIGNAL, 3, "b"),
    (SIGNAL, 4, "b"),
]


@pytest.mark.parametrize(("call", "when", "where"), STEPS)
@pytest.mark.parametrize("victim", ["hook", "criu"])
async def test_one_copy(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path, victim: str, call: str, when: int, where: str
) -> None:
    script = node_dir / "traced"
    script.write_text(SCRIPT.format(call=call, when=when, signal="KILL" if victim == "hook" else "STOP"))
    script.chmod(0o755)
    check = await nodes.start_memcheck(a, size=1 << 20, procs=PROCESSES, threads=2)
    cache = await restartable_cache(b, 0, criu_latest)
    proxy = start_migrate(a, check.pid, cache.address, criu_latest, "--action-script", script)
    if victim == "criu":
        await _kill_criu_at_the_step(a, script.with_name(f"{script.name}.log"))
    done = await proxy.ended()
    assert done.code == (0 if where == "b" else 1), done.output
    await until(lambda: bool(tree_in(a, check)) != bool(tree_in(b, check)), "the tree to be in one node")
    await assert_runs(check, a if where == "a" else b)
    await assert_all_ends(a, b, check, cache)


async def _kill_criu_at_the_step(node: Node, log: Path) -> None:
    """The script stands there; it goes on when CRIU is dead."""
    await until(lambda: log.exists() and "stopped by SIGSTOP" in log.read_text(), "the action script to come there")
    (script,) = [pid for pid, command in node.processes().items() if "imgproxy.hook" in command]
    kill_all(node, ("dump", "--stream"))
    kill_all(node, ("strace",))
    os.kill(script, signal.SIGCONT)
