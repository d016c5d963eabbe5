"""Asking CRIU: what it prints is parsed right; the real one answers; one that misbehaves gives a clear error."""

import re
import signal
from pathlib import Path

import pytest
import trio
import trio.testing

from imgnode.criu import (
    DEADLINE,
    OLDEST_STREAM,
    OLDEST_TESTED,
    Criu,
    CriuError,
    Version,
    cause,
    last_error,
    parse_version,
)
from imgnode.criu_options import OPTIONS, REFUSED, split
from imgwire.errors import UsageError


def _program(directory: Path, script: str) -> Criu:
    path = directory / "criu"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return Criu(path)


@pytest.mark.t0
@pytest.mark.parametrize(
    ("output", "version", "shown"),
    [
        ("Version: 4.1.1\n", Version(4, 1, 1), "4.1.1"),
        ("Version: 3.15\nGitID: v3.15-1-gabcdef\n", Version(3, 15), "3.15"),
        ("Warn (x)\nVersion: 4.2\n", Version(4, 2, 0), "4.2"),
        ("Version: 3.17.1-dev\n", Version(3, 17, 1), "3.17.1"),
    ],
)
def test_parse_version(output: str, version: Version, shown: str) -> None:
    assert parse_version(output) == version
    assert str(version) == shown


@pytest.mark.t0
def test_versions_compare_as_numbers() -> None:
    assert Version(3, 9) < OLDEST_STREAM < Version(3, 15, 1) < OLDEST_TESTED < Version(4, 10)
    with pytest.raises(ValueError, match="no CRIU version"):
        parse_version("criu 4")


@pytest.mark.t0
def test_last_error() -> None:
    log = (
        "Error (criu/first.c:1): one\n"
        "(00.001234) Error (criu/image.c:549): Head magic doesn't match\n"
        "(00.001235)     12: Error (criu/util.c:7): the last: of all\n"
        "Warn  (criu/kerndat.c:1285): not an error\n"
    )
    assert last_error(log) == "the last: of all"
    assert last_error(log.split("(00.001235)", maxsplit=1)[0]) == "Head magic doesn't match"
    assert last_error("Warn  (criu/kerndat.c:1285): fine\n") is None


@pytest.mark.t0
def test_the_cause_of_a_failure_is_the_first_error_that_says_something() -> None:
    log = (
        "Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"
        "Error (criu/tun.c:85): tun: Unable to create tun: No such file or directory\n"
        "  3025: Error (criu/files-reg.c:2267): Can't open file lib/program: No such file or directory\n"
        "  3025: Error (criu/mem.c:911): Can't fixup VMA's fd\n"
        "Error (criu/cr-restore.c:2320): Restoring FAILED.\n"
    )
    assert cause(log) == "Can't open file lib/program: No such file or directory"
    assert cause(log.splitlines()[-1]) == "Restoring FAILED."
    assert cause("") is None


@pytest.mark.t1
async def test_no_such_program(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such program"):
        await Criu(tmp_path / "none").version()
    with pytest.raises(UsageError, match="no such program"):
        await Criu("no-criu-of-this-name").version()


@pytest.mark.t1
async def test_a_program_that_cannot_be_started(tmp_path: Path) -> None:
    path = tmp_path / "criu"
    path.write_bytes(b"\x7fELF nonsense")
    path.chmod(0o755)
    with pytest.raises(UsageError, match="cannot be started"):
        await Criu(path).version()


@pytest.mark.t1
async def test_another_program(tmp_path: Path) -> None:
    with pytest.raises(CriuError, match=r"gives no version: frob 1\.0"):
        await _program(tmp_path, "echo frob 1.0").version()
    with pytest.raises(CriuError, match="gives no version: exit code 3"):
        await _program(tmp_path, "exit 3").version()
    with pytest.raises(CriuError, match="gives no version: broken"):
        await _program(tmp_path, "echo Version: 4.1; echo broken >&2; exit 1").version()


@pytest.mark.t1
@pytest.mark.parametrize(
    "said", ["Warn  (criu/cr-check.c:824): Dirty tracking is OFF.", "Error (criu/cr-check.c:1): x"]
)
async def test_a_feature_that_is_missing(tmp_path: Path, said: str) -> None:
    assert not await _program(tmp_path, f"echo '{said}' >&2; exit 1").check_feature("mem_dirty_track")


@pytest.mark.t1
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (
            "CRIU needs to have the CAP_SYS_ADMIN capability: \nsetcap x",
            "CRIU needs to have the CAP_SYS_ADMIN capability",
        ),
        ("Error (criu/kerndat.c:5): no /proc\nError (criu/crtools.c:9): gives up", "no /proc"),
        ("", "exit code 1 and no message"),
    ],
)
async def test_a_feature_that_cannot_be_looked_for(tmp_path: Path, said: str, reason: str) -> None:
    with pytest.raises(CriuError) as caught:
        await _program(tmp_path, f"printf '{said}' >&2; exit 1").check_feature("mem_dirty_track")
    assert str(caught.value).endswith(f"check --feature mem_dirty_track: {reason}")


@pytest.mark.t1
async def test_killed(tmp_path: Path) -> None:
    with pytest.raises(CriuError, match="was ended by SIGKILL"):
        await _program(tmp_path, f"kill -{signal.SIGKILL} $$").check_feature("uffd")


@pytest.mark.t1
async def test_a_silent_program_is_given_up(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    with pytest.raises(CriuError, match="gave no answer in 90 s"):
        await _program(tmp_path, "exec sleep 1000").version()
    assert autojump_clock.current_time() >= DEADLINE


@pytest.mark.t2
async def test_real_version(criu: Path) -> None:
    assert await Criu(criu).version() >= OLDEST_TESTED


@pytest.mark.t2
async def test_real_cpuinfo(criu: Path, tmp_path: Path) -> None:
    real = Criu(criu)
    await real.cpuinfo_dump(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cpuinfo.img"]
    assert await real.cpuinfo_check(tmp_path) is None
    (tmp_path / "cpuinfo.img").write_bytes(b"x" * 16)
    reason = await real.cpuinfo_check(tmp_path)
    assert reason == "Head magic doesn't match for cpuinfo.img"


@pytest.mark.t2
async def test_real_cpuinfo_without_a_directory(criu: Path, tmp_path: Path) -> None:
    with pytest.raises(CriuError, match="Couldn't open image dir"):
        await Criu(criu).cpuinfo_dump(tmp_path / "none")


@pytest.mark.t2
async def test_real_features(criu: Path) -> None:
    real = Criu(criu)
    assert await real.check_feature("can_map_vdso")
    assert not await real.check_feature("no-such-feature")


@pytest.mark.t2
async def test_real_options_are_all_known(criu: Path) -> None:
    """A release with a new option shows here: it has to be placed in a table."""
    done = await trio.run_process([str(criu), "--help"], capture_stdout=True)
    words = re.findall(r"(?:^|[ |])--([a-z][a-z-]+)", done.stdout.decode(), re.MULTILINE)
    assert len(words) > 80
    assert set(words) - OPTIONS.keys() - REFUSED.keys() - {"no-", "no-display-stats"} == set()


@pytest.mark.t2
@pytest.mark.parametrize("side", ["dump", "restore"])
async def test_real_criu_takes_what_split_gives(criu: Path, tmp_path: Path, side: str) -> None:
    """Each word is parsed by CRIU itself: it goes on to look for its process or images, and fails there."""
    given = ["-jl", "--tcp-close", "--ghost-limit", "1M", "-r", "/", "--cpu-cap=none", "--external", "mnt[]:sm"]
    words = split([*given, "--manage-cgroups=soft", "--no-weak-sysctls", "--timeout=5"])
    options = words.dump if side == "dump" else words.restore
    target = ["-t", "4194304"] if side == "dump" else []
    command = [str(criu), side, *target, "-D", str(tmp_path), *options]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    output = (done.stdout + done.stderr).decode()
    assert done.returncode == 1
    assert "unrecognized" not in output
    assert "Usage:" not in output
    assert ("4194304" if side == "dump" else "empty-image") in output
