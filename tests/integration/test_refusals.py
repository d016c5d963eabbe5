"""What cannot work is refused before anything is frozen; what fails later leaves the process where it was."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests.nodes import Ended, Node, Nodes, assert_runs, migrate, start_cache
from tests.programs.selfcheck import SelfCheck

pytestmark = pytest.mark.t2


@asynccontextmanager
async def never_frozen(check: SelfCheck, a: Node) -> AsyncIterator[None]:
    """Fails if a CRIU was started for the process, which is what would freeze it, or if it does not run on."""
    yield
    await assert_runs(check, a)
    assert not (a.directory / "migrations" / "dump.log").exists(), "criu dump was run"


def _assert_line(ended: Ended, code: int, *texts: str) -> None:
    """One line, with this code, that holds these texts."""
    assert ended.code == code, ended.output
    lines = [line for line in ended.stderr.splitlines() if line != "checking"]
    assert len(lines) == 1
    assert lines[0].startswith("imgproxy: ")
    for text in texts:
        assert text in lines[0]
    assert ended.stdout == ""


async def test_the_destination_does_not_do(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a)
    async with never_frozen(check, a):
        done = await migrate(a, check.pid, "127.0.0.1:1", criu_latest)
        _assert_line(done, 1, "127.0.0.1:1: nothing listens there; is imgcache running?")
        cache = await start_cache(b, criu=criu_latest)
        done = await migrate(a, check.pid, cache.address, criu_latest)
        _assert_line(done, 2, "nothing was frozen: destination: ", "start imgcache with --allow-restore")
        directory = nodes.make_node_dir()
        without = await start_cache(b, "--allow-restore", criu=Path("/nowhere/criu"), directory=directory)
        done = await migrate(a, check.pid, without.address, criu_latest)
        _assert_line(done, 2, "nothing was frozen: destination: no usable CRIU", "/nowhere/criu")
        assert await cache.stop() == 0
        assert await without.stop() == 0


async def test_there_is_no_room_for_the_images(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a, size=8 << 20)
    cache = await start_cache(b, "--memory-limit", "2MiB", "--allow-restore", criu=criu_latest)
    async with never_frozen(check, a):
        done = await migrate(a, check.pid, cache.address, criu_latest)
        limit = "nothing was frozen: destination: its cache's memory limit and spool leave 2 MiB and the images need "
        _assert_line(done, 2, limit, "start imgcache there with a higher --memory-limit or --spool DIR")
    small = await nodes.start_memcheck(a, size=1 << 20)
    assert (await migrate(a, small.pid, cache.address, criu_latest)).code == 0
    await assert_runs(small, b)


async def test_the_source_does_not_do(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    async with never_frozen(check, a):
        done = await migrate(a, 2999, cache.address, criu_latest)
        _assert_line(done, 2, "there is no process 2999")
        done = await migrate(a, check.pid, cache.address, Path("/nowhere/criu"))
        _assert_line(done, 2, "nothing was frozen: source: no usable CRIU", "/nowhere/criu")
        for option in ("--auto-dedup", "--leave-running", "--track-mem", "--page-server", "--prev-images-dir=x"):
            done = await migrate(a, check.pid, cache.address, criu_latest, option)
            _assert_line(done, 2, f"CRIU option {option.partition('=')[0]}: ")
        assert not [line for line in cache.log if line["event"] == "aborted" and line["reason"] == ""]


async def test_a_restore_that_ends_at_once(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    async with never_frozen(check, a):
        done = await migrate(a, check.pid, cache.address, criu_latest, "--file-validation", "nonsense")
        _assert_line(done, 2, "nothing was frozen: criu restore there failed at once: ")


async def test_images_directories(nodes: Nodes, a: Node, b: Node) -> None:
    cache = await start_cache(b)

    async def refused(directory: Path, text: str) -> None:
        for program in (["imgproxy", "--to", cache.address], ["imgcache", "--listen", "127.0.0.1:0"]):
            ended = await a.run(*program, "-D", directory)
            assert ended.code == 2
            assert len(ended.stderr.splitlines()) == 1
            assert ended.stderr.startswith(f"{program[0]}: images directory {directory}: ")
            assert text in ended.stderr

    (a.directory / "parent").symlink_to(".")
    await refused(a.directory, "it holds `parent`, with which CRIU cannot stream")
    deep = nodes.make_node_dir() / ("x" * 80)
    deep.mkdir()
    await refused(deep, f"its path has {len(str(deep))} bytes, too long for ")
    await refused(a.directory / "nowhere", "make it, or name another")
    shared = nodes.make_node_dir()
    shared.chmod(0o777)
    await refused(shared, "others may write to it")


async def test_a_restore_that_fails_later(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """A file of the process is missing there: it runs on here, and the reason is told."""
    program = nodes.make_node_dir() / "program"
    program.write_bytes(nodes.programs.memcheck.read_bytes())
    program.chmod(0o700)
    check = await nodes.start_memcheck(a, program=program, procs=2)
    assert (await b.run("mount", "-t", "tmpfs", "tmpfs", program.parent)).code == 0
    cache = await start_cache(b, "--allow-restore", criu=criu_latest)
    done = await migrate(a, check.pid, cache.address, criu_latest, "--session", "lacking")
    assert done.code == 1
    assert done.stdout.startswith("aborted: Can't open file ")
    assert f"{str(program)[1:]} on restore: No such file or directory" in done.stdout.splitlines()[0]
    await assert_runs(check, a)
    kept = b.directory / "lacking.restore.log"
    assert str(program)[1:] in kept.read_text(), "CRIU's log of it"
    assert (await b.run("umount", program.parent)).code == 0
    done = await migrate(a, check.pid, cache.address, criu_latest)
    assert done.code == 0, done.output
    await assert_runs(check, b)


async def test_session_names(nodes: Nodes, a: Node, b: Node, criu_latest: Path) -> None:
    """One that can never be, and one that is too long for the cache's directory only."""
    check = await nodes.start_memcheck(a)
    directory = nodes.make_node_dir() / "long-enough"
    directory.mkdir(mode=0o700)
    cache = await start_cache(b, "--allow-restore", criu=criu_latest, directory=directory)
    fits = 107 - len(f"{directory}//streamer-serve.sock")
    async with never_frozen(check, a):
        done = await migrate(a, check.pid, cache.address, criu_latest, "--session", "x" * 65)
        _assert_line(done, 2, "--session: session name of 65 bytes is longer than 64; choose another name")
        done = await migrate(a, check.pid, cache.address, criu_latest, "--session", "x" * (fits + 1))
        _assert_line(
            done, 1, f"{directory}/xxx", "a socket's path has at most 107 bytes; use a shorter directory or name"
        )
        assert not [path for path in directory.iterdir() if path.name.startswith("x")]
    done = await migrate(a, check.pid, cache.address, criu_latest, "--session", "x" * fits)
    assert done.code == 0, done.output
    await assert_runs(check, b)


async def test_a_cache_s_directory_without_room_for_sessions(nodes: Nodes, b: Node) -> None:
    directory = nodes.make_node_dir()
    deep = directory / ("x" * (58 - len(str(directory)) - 1))
    deep.mkdir(mode=0o700)
    ended = await b.run("imgcache", "-D", deep, "--listen", "127.0.0.1:0")
    assert (ended.code, ended.stderr) == (
        2,
        f"imgcache: images directory {deep}: its path has 58 bytes, too long for the socket of a session in it: "
        "name one with at most 57\n",
    )
    shorter = deep.with_name(deep.name[:-1])
    shorter.mkdir(mode=0o700)
    assert await (await start_cache(b, directory=shorter)).stop() == 0


@pytest.mark.parametrize("option", [["--incremental"], ["-W", "/tmp"]])
async def test_what_only_criu_remote_has(a: Node, b: Node, option: list[str]) -> None:
    """It would do nothing, and somebody would rely on it."""
    cache = await start_cache(b)
    ended = await a.run("imgproxy", "-D", a.directory, "--to", cache.address, *option)
    assert ended.code == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "only criu --remote" in ended.stderr
