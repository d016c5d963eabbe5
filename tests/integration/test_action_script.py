"""An action script of the user's: when it is called on both nodes, and what becomes of the process where it fails."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nodes import Node, Nodes, assert_runs, migrate, start_cache, start_migrate, until
from tests.programs.selfcheck import kill_and_wait

pytestmark = pytest.mark.t2

#: Notes each call, fails or waits where it is told to.
SCRIPT = """#!/bin/sh
echo "$CRTOOLS_SCRIPT_ACTION" >>"$0.called"
[ ! -e "$0.fails-$CRTOOLS_SCRIPT_ACTION" ] || exit 3
while [ -e "$0.waits-$CRTOOLS_SCRIPT_ACTION" ]; do sleep 0.05; done
"""
#: The calls of a restore, until it is all there; and when it runs.
RESTORE, RUNNING = ["pre-stream", "pre-restore", "post-restore"], ["pre-resume", "post-resume"]


class Script:
    """One such script."""

    def __init__(self, folder: Path, fails: str = "") -> None:
        self.path = folder / "of mine"
        self.path.write_text(SCRIPT)
        self.path.chmod(0o755)
        self.path.with_name(f"{self.path.name}.fails-{fails}").touch()

    @property
    def called(self) -> list[str]:
        """The actions so far."""
        record = self.path.with_name(f"{self.path.name}.called")
        return record.read_text().split() if record.exists() else []

    def waits(self, action: str) -> Path:
        """While this file is there, it waits in that."""
        file = self.path.with_name(f"{self.path.name}.waits-{action}")
        file.touch()
        return file


@pytest.fixture
def make_script(make_node_dir: Callable[[], Path]) -> Callable[..., Script]:
    return lambda fails="": Script(make_node_dir(), fails)


async def test_called_by_both(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, make_script: Callable[..., Script]
) -> None:
    """For the dump, not for rounds."""
    here, there = make_script(), make_script()
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", "--action-script", there.path, criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--action-script", here.path, "--rounds", 1)
    assert done.code == 0, done.output
    await assert_runs(check, b)
    assert here.called[-2:] == ["pre-dump", "post-dump"] and here.called.count("post-dump") == 1
    await until(lambda: there.called == [*RESTORE, *RUNNING], "all calls there")


@pytest.mark.parametrize("action", ["pre-dump", "post-dump"])
async def test_where_it_fails_here_the_process_stays(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, make_script: Callable[..., Script], action: str
) -> None:
    here = make_script(action)
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--action-script", here.path)
    assert done.code == 1, done.output
    last = {"pre-dump": ["pre-stream", "pre-dump"], "post-dump": ["post-dump", "dump-failed"]}
    assert here.called[-2:] == last[action]
    await assert_runs(check, a)


@pytest.mark.parametrize("action", ["pre-restore", "post-restore"])
async def test_where_it_fails_there_the_process_stays_here(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, make_script: Callable[..., Script], action: str
) -> None:
    here, there = make_script(), make_script(action)
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", "--action-script", there.path, criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--action-script", here.path)
    assert done.code == 1, done.output
    assert here.called[-2:] == ["post-dump", "dump-failed"]
    last = {"pre-restore": RESTORE[:2], "post-restore": [*RESTORE, "restore-failed"]}
    await until(lambda: there.called == last[action], "the last call there")
    await assert_runs(check, a)


async def test_after_a_crash_of_imgproxy(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, make_script: Callable[..., Script]
) -> None:
    here = make_script()
    waits = here.waits("post-dump")
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    proxy = start_migrate(a, check.pid, cache.address, criu_latest, "--action-script", here.path)
    await until(lambda: here.called[-1:] == ["post-dump"], "the dump")
    kill_and_wait(proxy.pid)
    waits.unlink()
    await assert_runs(check, a)
    assert "dump-failed" not in here.called
    done = await a.run("imgproxy", "recover", "--journal", a.directory / "migrations")
    assert done.code == 0, done.output
    assert here.called[-1] == "dump-failed"


async def test_after_a_crash_while_the_process_waits_for_the_destination(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, make_script: Callable[..., Script]
) -> None:
    here, there = make_script(), make_script()
    waits = there.waits("pre-restore")
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", "--action-script", there.path, criu=criu_latest)
    proxy = start_migrate(a, check.pid, cache.address, criu_latest, "--action-script", here.path)
    await until(lambda: there.called[-1:] == ["pre-restore"], "the restore")
    kill_and_wait(proxy.pid)
    await until(lambda: here.called[-1:] == ["dump-failed"], "a recovery")
    waits.unlink()
    await until(lambda: there.called[-1:] == ["restore-failed"], "the end of the restore")
    await assert_runs(check, a)


async def test_what_cannot_be_run_is_refused(a: Node, b: Node, criu_latest: Path) -> None:
    cache = await b.run("imgcache", "-D", b.directory, "--action-script", b.directory / "none")
    proxy = await migrate(a, 1, "127.0.0.1:1", criu_latest, "--action-script", a.directory / "none")
    for refused in (cache, proxy):
        assert refused.code == 2
        assert len(refused.output.splitlines()) == 1
        assert "that is no program which can be run" in refused.output
