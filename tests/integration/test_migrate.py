"""`imgproxy migrate`: the whole migration as one command."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.integration import shared_counter
from tests.nodes import DEADLINE, Node, Nodes, assert_runs, migrate, start_cache, summary, until

pytestmark = pytest.mark.t2


async def test_a_tree_with_threads_told_as_json(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20, procs=3, threads=3)
    cache = await start_cache(b, "--allow-restore", criu=criu)
    done = await migrate(a, check.pid, cache.address, criu, "--json", "--session", "tree")
    assert done.code == 0, done.output
    await assert_runs(check, b)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    phases = [line["phase"] for line in lines if line["event"] == "phase"]
    assert phases[0] == "checking"
    assert phases.index("checking") < phases.index("dumping") < phases.index("running")
    progress = [line["bytes"] for line in lines if line["event"] == "progress"]
    assert progress == sorted(progress)
    assert {line["event"] for line in lines[:-1]} == {"phase", "progress"}
    _check_summary(summary(done), image_bytes=3 * (4 << 20))
    await check.finish()
    assert await cache.stop() == 0
    await until(lambda: not a.processes() and not b.processes(), "nothing to be left")
    assert {path.name for path in a.path("/run").iterdir()} <= {"criu.kdat"}, "its images directory is gone"
    assert {path.name for path in (a.directory / "migrations").iterdir()} == {"dump.log"}
    assert b.files() - {"journal"} == {name for name in b.files() if name.startswith("journal/")}


def _check_summary(found: dict[str, object], image_bytes: int) -> None:
    assert found["session"] == "tree"
    assert found["outcome"] == "committed"
    assert found["reason"] == ""
    assert found["reconnects"] == 0
    assert isinstance(found["image_bytes"], int)
    assert isinstance(found["wire_bytes"], int)
    assert image_bytes < found["image_bytes"] < 1.5 * image_bytes
    assert found["wire_bytes"] > 0
    assert isinstance(found["bytes_by_kind"], dict)
    assert found["bytes_by_kind"]["pages"] > image_bytes
    assert {"core", "mm", "pagemap", "files"} <= set(found["bytes_by_kind"])
    assert sum(found["bytes_by_kind"].values()) == found["image_bytes"]
    phases = found["phases"]
    assert isinstance(phases, dict)
    assert list(phases) == ["dump and send", "last bytes", "restore", "give up here", "resume there"]
    assert isinstance(found["frozen"], float)
    assert all(0 <= seconds <= found["frozen"] for seconds in phases.values())
    assert sum(phases.values()) == pytest.approx(found["frozen"], abs=0.05)
    assert phases["give up here"] < 5, "a killed tree is seen dead at once, with threads too"


async def test_plain_output(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest)
    assert done.code == 0, done.output
    assert done.stderr.splitlines()[0] == "checking"
    assert done.stderr.splitlines()[-1] == "running"
    told = [line.split()[0] for line in done.stdout.splitlines()]
    assert told == ["committed", "frozen", "images", "rate", "time"]


async def test_a_bar_on_a_terminal(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=32 << 20)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    on_terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    command = ["imgproxy", "migrate", check.pid, "--to", cache.address, "--criu", criu_latest]
    done = await a.run(sys.executable, "-c", on_terminal, *command, "--journal", a.directory, "--limit-rate", "20MB")
    assert done.code == 0, done.output
    assert "━" in done.stdout, "a bar"
    for shown in ("checking", "dumping", "MiB", "MiB/s", "committed", "frozen"):
        assert shown in done.stdout
    await assert_runs(check, b)


async def test_processes_that_share_memory(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    report = nodes.make_node_dir() / "report"
    pid = await nodes.start_quiet(a, sys.executable, "-S", shared_counter.__file__, report)
    await until(_is_fresh(report, 0), "both to count")
    cache = await start_cache(b, "--allow-restore", criu=criu)
    done = await migrate(a, pid, cache.address, criu)
    assert done.code == 0, done.output
    await a.empty()
    before = max(_words(report))
    await until(_is_fresh(report, before), "both to count on, and to see each other do so")


def _words(report: Path) -> tuple[int, ...]:
    return tuple(map(int, report.read_text().split()))


def _is_fresh(report: Path, than: int) -> Callable[[], bool]:
    return lambda: report.exists() and len(_words(report)) == 3 and min(_words(report)) > than


async def test_a_dead_child_that_nobody_has_buried(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    """CRIU does not trace it, and restores it as dead as it was."""
    pid = await nodes.start_quiet(a, "sh", "-c", "sleep 0 & exec sleep 1000")
    cache = await start_cache(b, "--allow-restore", criu=criu)
    with trio.fail_after(DEADLINE):
        while (await a.run("ps", "-o", "stat=", "--ppid", pid)).stdout != "Z\n":
            pass
    done = await migrate(a, pid, cache.address, criu)
    assert done.code == 0, done.output
    assert (await b.run("ps", "-o", "stat=", "--ppid", pid)).stdout == "Z\n"
    assert "sleep 1000 " in b.processes().values()


async def test_there_and_back_again(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20, procs=2)
    here = await start_cache(a, "--allow-restore", criu=criu)
    there = await start_cache(b, "--allow-restore", criu=criu)
    done = await migrate(a, check.pid, there.address, criu)
    assert done.code == 0, done.output
    await assert_runs(check, b)
    done = await migrate(b, check.pid, here.address, criu)
    assert done.code == 0, done.output
    await assert_runs(check, a)
    await check.finish()


async def test_options_of_criu_reach_both_sides(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    """A file lock is dumped and restored only if both are told --file-locks.

    The file must not be the same one: while the process waits for the destination it still holds the lock.
    """
    lock = nodes.make_node_dir() / "lock"
    for node in (a, b):
        assert (await node.run("mount", "-t", "tmpfs", "tmpfs", lock.parent)).code == 0
        assert (await node.run("touch", lock)).code == 0
    pid = await nodes.start_quiet(a, "flock", "--no-fork", lock, "sleep", "1000")
    await until(lambda: "sleep 1000 " in a.processes().values(), "the lock to be taken")
    cache = await start_cache(b, "--allow-restore", criu=criu)
    refused = await migrate(a, pid, cache.address, criu)
    assert refused.code == 1
    first, log = refused.stdout.splitlines()[0], a.directory / "migrations" / "dump.log"
    assert "lock" in first and f"(its log is kept as {log})" in first
    assert log.read_text()
    assert "sleep 1000 " in a.processes().values()
    done = await migrate(a, pid, cache.address, criu, "--file-locks")
    assert done.code == 0, done.output
    assert "sleep 1000 " in b.processes().values()
    assert (await b.run("flock", "--nonblock", lock, "true")).code == 1, "it is locked"
