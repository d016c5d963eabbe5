"""What is done before a change of ISA: what cannot be is refused, by name and in one line, and all else is brought to
points, from where it runs on if it stays."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from elftools.elf.elffile import ELFFile

from imgnode import proc
from imgproxy.commands.options import check_pair
from imgproxy.points import standing
from imgproxy.trap import status_of
from imgwire.errors import UsageError
from tests.nodes import until
from tests.programs.selfcheck import kill_and_wait
from tests.toolchain.pairs import PROGRAMS, output, run

pytestmark = pytest.mark.t2

IMGPROXY = Path(sys.executable).parent / "imgproxy"


@pytest.fixture(scope="module")
def pair(hetcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pair")
    output(hetcc, "-O2", PROGRAMS / "crew.c", "-o", "crew", "--layout", directory, directory=directory)
    return directory


@pytest.fixture
def pid(pair: Path, tmp_path: Path) -> Iterator[int]:
    """A process of the pair's that waits; it must be left as it was."""
    with subprocess.Popen([pair / "crew", "1000", tmp_path / "out", "900"]) as process:
        yield process.pid
        assert process.poll() is None
        assert (Path(f"/proc/{process.pid}/stat").read_text().split()[2]) in "RS"
        for task in reversed(proc.tree(process.pid)):
            kill_and_wait(task.pid)


def test_what_is_a_pair(pid: int, pair: Path) -> None:
    check_pair(pid, "aarch64", pair)


async def test_one_that_has_ended_needs_no_program(pair: Path, tmp_path: Path) -> None:
    """A zombie of the tree's, whose parent has not asked for it yet, goes along."""
    process = await trio.lowlevel.open_process([str(pair / "crew"), "1000", str(tmp_path / "out"), "900"])
    await until(lambda: len(proc.tree(process.pid)) == 2, "it to have a child")
    process.send_signal(signal.SIGSTOP)
    child = proc.tree(process.pid)[1].pid
    os.kill(child, signal.SIGKILL)
    await until(lambda: states([process.pid, child]) == "TZ", "one to end, the other to stop")
    check_pair(process.pid, "aarch64", pair)
    process.kill()
    await process.wait()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--arch", "aarch64"], "--arch aarch64: needs --binaries DIR"),
        (["--arch", "aarch64", "--binaries", ".", "--lazy"], "--arch: the ISA changes once all memory is over"),
    ],
)
def test_options_that_do_not_go_together(pid: int, options: list[str], reason: str) -> None:
    done = run(IMGPROXY, "migrate", pid, "--to", "127.0.0.1:1", *options)
    said = done.stderr.decode()
    assert (done.returncode, said.count("\n")) == (2, 1), said
    assert reason in said


def refused(pid: int, directory: Path) -> str:
    with pytest.raises(UsageError) as error:
        check_pair(pid, "aarch64", directory)
    text = str(error.value)
    assert text.startswith("nothing was frozen: ") and "\n" not in text
    return text


def test_one_of_the_two_is_missing_or_not_what_its_name_says(pid: int, pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "bin", tmp_path / "bin")
    assert "has no directory bin" in refused(pid, tmp_path / "bin")
    other = tmp_path / "bin/crew_aarch64"
    other.unlink()
    assert f"{other}: No such file or directory; make the pair" in refused(pid, tmp_path)
    shutil.copy(pair / "bin/crew_x86-64", other)
    assert f"{other}: is for EM_X86_64, not for aarch64" in refused(pid, tmp_path)
    other.write_text("#!/bin/sh\n")
    assert f"{other}: no executable" in refused(pid, tmp_path)


def test_a_variable_that_differs(pid: int, pair: Path, tmp_path: Path) -> None:
    shutil.copytree(pair / "bin", tmp_path / "bin")
    with (tmp_path / "bin/crew_aarch64").open("r+b") as file:
        section = ELFFile(file).get_section_by_name(".data.equal")
        assert section is not None
        file.seek(section["sh_offset"] + 8)
        file.write(b"\xff")
    assert f"no pair: .data.equal: differs at {section['sh_addr'] + 8:#x}" in refused(pid, tmp_path)


def test_of_two_builds(hetcc: Path, pid: int, pair: Path, tmp_path: Path) -> None:
    source = tmp_path / "crew.c"
    source.write_text((PROGRAMS / "crew.c").read_text().replace("69069", "69070"))
    output(hetcc, "-O2", source, "-o", "crew", "--layout", tmp_path, directory=tmp_path)
    assert f"what runs is not {tmp_path}/bin/crew_x86-64" in refused(pid, tmp_path)
    shutil.copy(pair / "bin/crew_x86-64", tmp_path / "bin")
    assert "no pair: they are of two builds" in refused(pid, tmp_path)


def states(pids: list[int]) -> str:
    return "".join(status_of(task)["State"][0] for task in pids)


async def whole_tree(pid: int) -> list[int]:
    """Both of its processes, once it has forked."""
    await until(lambda: len(proc.tree(pid)) == 2, "it to have a child")
    return [task.pid for task in proc.tree(pid)]


async def test_a_tree_is_brought_to_points_and_runs_on(pid: int) -> None:
    tree = await whole_tree(pid)
    resumed: set[int] = set()
    async with standing(pid, resumed):
        assert states(tree) == "TT"
        assert resumed == set(tree)
    await until(lambda: "T" not in states(tree), "it to run on")
    with pytest.raises(ValueError, match="of the dump"):
        async with standing(pid, resumed):
            raise ValueError("of the dump")
    await until(lambda: "T" not in states(tree), "it to run on after an error")


async def test_what_is_given_up_stands(pid: int) -> None:
    tree = await whole_tree(pid)
    os.kill(tree[1], signal.SIGSTOP)
    await until(lambda: states(tree[1:]) == "T", "one to stop")
    resumed: set[int] = set()
    async with standing(pid, resumed) as state:
        state.given_up = True
        assert resumed == {pid}, "the other was stopped by somebody else"
    assert states(tree) == "TT"
    for task in tree:
        os.kill(task, signal.SIGCONT)
    await until(lambda: "T" not in states(tree), "it to run on")


def test_a_program_of_another_compiler(pair: Path) -> None:
    assert "python" in refused(os.getpid(), pair)
