"""`imgproxy recover` after the source machine has crashed: what was not given up died with it."""

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from tests.nodes import Ended, Node, Nodes, assert_runs, dump, restore, start_cache, start_proxy, until
from tests.programs.selfcheck import kill_and_wait

pytestmark = pytest.mark.t2

SLOW = ["--limit-rate", "2MB", "--compress", "off"]


def _crash(node: Node) -> None:
    """All that ran there is gone, nobody having seen another die, and what was written down is of an earlier boot."""
    stopped: set[int] = set()
    while new := {pid for pid, command in node.processes().items() if "reaper" not in command} - stopped:
        for pid in new:
            with suppress(ProcessLookupError):  # a program that has just come to its end
                os.kill(pid, signal.SIGSTOP)
        stopped |= new
    for pid in stopped:
        kill_and_wait(pid)
    (journal,) = (node.directory / "journal").glob("*.journal")
    (record,) = [json.loads(line) for line in journal.read_text().splitlines()]
    assert record["state"] == "opened" and record["machine"] and record["boot"]
    journal.write_text(json.dumps({**record, "boot": "another"}) + "\n")


async def _recover(node: Node) -> Ended:
    done = await node.run("imgproxy", "recover", "-D", node.directory, "--patience", 5)
    assert not list((node.directory / "journal").iterdir())
    return done


async def test_the_destination_has_it_whole(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20)
    cache = await start_cache(b)
    await start_proxy(a, cache.address, "--wait-restored", "--session", "mine")
    dump(a, criu_latest, check.pid)
    await cache.wait_log("complete")
    _crash(a)
    done = await _recover(a)
    assert (done.code, done.stdout) == (0, "mine: the process runs at the destination; the cache knows (committed)\n")
    assert await restore(b, criu_latest).wait() == 0
    await assert_runs(check, b)
    assert await cache.stop() == 0


async def test_the_destination_has_a_part(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=16 << 20)
    cache = await start_cache(b)
    await start_proxy(a, cache.address, "--session", "mine", *SLOW)
    dump(a, criu_latest, check.pid)
    await until((a.directory / "dump.log").exists, "the dump to begin")
    _crash(a)
    done = await _recover(a)
    assert done.code == 1
    assert done.stdout.startswith("mine: the process died with this machine; the cache cannot bring it back (")
    assert await cache.stop() == 0


async def test_a_journal_of_another_machine_says_nothing_of_the_dead(nodes: Nodes, a: Node, b: Node) -> None:
    """Here the process runs on, and the journal was carried to where it is not seen."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_proxy(a, cache.address, "--session", "mine")
    await proxy.kill9()
    (journal,) = (a.directory / "journal").glob("*.journal")
    record = json.loads(journal.read_text())
    journal.write_text(json.dumps({**record, "boot": "another", "machine": "another"}) + "\n")
    done = await _recover(a)
    assert (done.code, done.stdout) == (0, "mine: the process stays here; the cache knows (aborted)\n")
    await assert_runs(check, a)
    assert await cache.stop() == 0
