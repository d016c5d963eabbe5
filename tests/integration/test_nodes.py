"""The nodes of these tests are what they say."""

import signal
from pathlib import Path

import pytest

from tests.nodes import Node, Nodes, until

pytestmark = pytest.mark.t2


async def test_a_program_runs_among_the_nodes_own_pids(a: Node, b: Node) -> None:
    for node in (a, b):
        done = await node.run("sh", "-c", "echo $$; ls -A /run; ls /proc; exit 3")
        pid, *listed = [int(word) for word in done.stdout.split() if word.isdigit()]
        assert done.code == 3
        assert node.number * 3000 < pid < node.number * 3000 + 100
        assert set(listed) == {1, pid, max(listed)}, "its init, sh and ls"


async def test_signals_reach_a_program_and_its_output_is_waited_for(a: Node) -> None:
    program = a.start(
        "sh", "-c", "trap 'echo bye >&2; exit 5' TERM; sleep 1000 & echo '{\"event\": \"ready\"}' >&2; wait"
    )
    assert await program.wait_log("ready") == {"event": "ready"}
    assert await program.stop() == 5
    assert "bye" in program.stderr
    await until(lambda: list(a.processes().values()) == ["sleep 1000 "], "the orphan is the node's")
    sleeper = a.start("sleep", "1000")
    await sleeper.kill9()
    assert sleeper.code == -signal.SIGKILL
    assert not Path(f"/proc/{sleeper.pid}").exists()


async def test_a_checked_process_runs_in_a_node(nodes: Nodes, a: Node) -> None:
    check = await nodes.start_memcheck(a, size=1 << 20, procs=3, threads=2)
    assert check.pid > 3000
    assert len(check.pids()) == 3
    assert not {check.pid} & set(check.pids()), "they have other pids here"
    await check.wait_progress()
    await check.verify_memory()
    check.assert_single_history()
    await check.finish()
    await a.empty()


async def test_nodes_with_networks_of_their_own_can_be_joined(nodes: Nodes) -> None:
    a, b = await nodes.make(network=True), await nodes.make(network=True)
    here, there = await nodes.join(a, b)
    assert (await a.run("ip", "-br", "address")).stdout.count("UP") >= 1
    listing = (await b.run("ip", "-br", "address", "show", "eth0")).stdout
    assert there in listing
    assert here not in listing
