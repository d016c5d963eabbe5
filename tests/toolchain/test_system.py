"""What programs ask of the system and of their threads, alike on both ISAs, and like a program of cc's."""

from pathlib import Path

import pytest

from tests.toolchain.test_pairs import PROGRAMS, assert_same_on_both, output

pytestmark = pytest.mark.t2


@pytest.mark.parametrize("name", ["storage", "system", "libc"])
def test_like_a_program_of_cc(hetcc: Path, tmp_path: Path, name: str) -> None:
    output("cc", "-w", "-O0", "-frounding-math", PROGRAMS / f"{name}.c", "-o", tmp_path / "cc", "-lm", "-lpthread")
    output(hetcc, "-O2", PROGRAMS / f"{name}.c", "-o", tmp_path / name, "-lm", "-lpthread")
    assert_same_on_both(tmp_path / name, output(tmp_path / "cc"))
