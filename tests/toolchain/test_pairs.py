"""Whole pairs: built by hetcc, run on both ISAs (aarch64 by qemu's emulation), compared with what cc makes."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from transform.sites import Kind, read_sites

pytestmark = pytest.mark.t2

PROGRAMS = Path(__file__).parent / "programs"
DEADLINE = 120.0  # seconds for a program


def run(*words: object, directory: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run to the end."""
    return subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, check=False, timeout=DEADLINE, cwd=directory
    )


def output(*words: object) -> str:
    done = run(*words)
    assert done.returncode == 0, f"{words}: exit code {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def calls(hetcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pair of calls.c; the path without the ISA's name."""
    program = tmp_path_factory.mktemp("calls") / "calls"
    output(hetcc, "-O2", PROGRAMS / "calls.c", "-o", program)
    return program


def assert_same_on_both(program: Path, reference: str) -> None:
    assert output(f"{program}_x86-64") == reference
    assert output("qemu-aarch64", f"{program}_aarch64") == reference


def test_arguments_results_and_jumps(calls: Path, tmp_path: Path) -> None:
    output("cc", "-O1", PROGRAMS / "calls.c", "-o", tmp_path / "reference")
    assert_same_on_both(calls, output(tmp_path / "reference"))
    assert output(calls) == output(tmp_path / "reference"), "a copy of this machine's"


def test_threads(hetcc: Path, tmp_path: Path) -> None:
    output(hetcc, "-O2", PROGRAMS / "threads.c", "-o", tmp_path / "threads", "-lpthread")
    assert_same_on_both(tmp_path / "threads", "610\n987\n1597\n2584\n4000\n")


def test_arguments_of_few_bits(hetcc: Path, tmp_path: Path) -> None:
    output("cc", PROGRAMS / "narrow.c", "-o", tmp_path / "reference")
    output(hetcc, "-O1", PROGRAMS / "narrow.c", "-o", tmp_path / "narrow")
    assert_same_on_both(tmp_path / "narrow", output(tmp_path / "reference"))


def test_labels_as_values(hetcc: Path, tmp_path: Path) -> None:
    output(hetcc, "-O2", PROGRAMS / "labels.c", "-o", tmp_path / "labels")
    assert_same_on_both(tmp_path / "labels", "48 4 5 -128\n")


def test_a_build_by_make(hetcc: Path, tmp_path: Path) -> None:
    """Objects, an archive made by ar, dependency files, and the layout that migrations read."""
    (tmp_path / "twice.c").write_text('#include "twice.h"\nint twice(int n) { return 2 * n; }\n')
    (tmp_path / "twice.h").write_text("int twice(int);\n")
    (tmp_path / "unused.c").write_text("int twice_unused(void) { return 1; }\n")
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "twice.h"\n'
        'int main(int n, char **v) { return printf("%d %s\\n", twice(21), v[1]) < 0; }\n'
    )
    (tmp_path / "Makefile").write_text(
        "CFLAGS = -O2 -g -MMD\nprog: main.o libtwice.a\n\t$(CC) main.o -L. -ltwice -o $@ --layout out\n"
        "libtwice.a: twice.o unused.o\n\tar rcs $@ $^\n-include main.d\n"
    )
    done = run("make", f"CC={hetcc}", directory=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "twice.h" in (tmp_path / "main.d").read_text()
    assert output(tmp_path / "out/prog", "here") == "42 here\n"
    assert output(tmp_path / "out/bin/prog_x86-64", "here") == "42 here\n"
    assert output("qemu-aarch64", tmp_path / "out/bin/prog_aarch64", "here") == "42 here\n"


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("extern _Thread_local int mine; int main(void) { return mine++; }", "mine: a thread-local variable"),
        ('int main(void) { int a; __asm__("mov %0, #1" : "=r"(a)); return a; }', "main: inline assembly"),
    ],
)
def test_what_cannot_be_moved_is_refused_by_name(hetcc: Path, tmp_path: Path, source: str, named: str) -> None:
    (tmp_path / "a.c").write_text(source)
    done = run(hetcc, "-O0", tmp_path / "a.c", "-o", tmp_path / "a")
    assert done.returncode == 1
    assert f"error: {named}" in done.stderr and "cannot be made migratable" in done.stderr
    assert not (tmp_path / "a_x86-64").exists()


def test_an_error_of_the_compiler_is_shown(hetcc: Path, tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int main(void) { return nothing; }\n")
    done = run(hetcc, "-c", tmp_path / "a.c", "-o", tmp_path / "a.o")
    assert done.returncode == 1
    assert "use of undeclared identifier 'nothing'" in done.stderr


def test_what_is_no_pair(hetcc: Path, calls: Path, tmp_path: Path) -> None:
    output(hetcc, "--check", f"{calls}_x86-64", f"{calls}_aarch64")
    changed = tmp_path / "changed"
    shutil.copy(f"{calls}_aarch64", changed)
    with changed.open("r+b") as file:
        section = ELFFile(file).get_section_by_name(".data.equal")
        assert section is not None
        file.seek(section["sh_offset"])
        file.write(b"\xff")
    done = run(hetcc, "--check", f"{calls}_x86-64", changed)
    assert done.returncode == 1
    assert f".data.equal: differs at {section['sh_addr']:#x}" in done.stderr
    done = run(hetcc, "--check", f"{calls}_aarch64", f"{calls}_x86-64")
    assert done.returncode == 1 and "is for EM_AARCH64" in done.stderr


def test_each_site_is_where_a_call_returns_to(calls: Path) -> None:
    """aarch64: right behind a `bl` or `blr`, which tells by itself."""
    with Path(f"{calls}_aarch64").open("rb") as file:
        elf = ELFFile(file)
        text = elf.get_section_by_name(".text.equal")
        assert text is not None
        code, start = text.data(), text["sh_addr"]
        found = [site.address for site in read_sites(Path(f"{calls}_aarch64")) if site.kind == Kind.CALL]
        assert len(found) > 100
        for address in found:
            (word,) = struct.unpack_from("<I", code, address - 4 - start)
            assert word >> 26 == 0b100101 or word & 0xFFFFFC1F == 0xD63F0000, f"{address:#x}: {word:#x}"
