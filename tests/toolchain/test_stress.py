"""Programs keep nothing outside of their frames: what they write is the same when all else is overwritten at each stop.

IMGPROXY_STOPS says how many stops; IMGPROXY_SEED draws their moments, and the bytes.
"""

import re
import sys
from pathlib import Path

import pytest

from tests.toolchain.pairs import PROGRAMS, output, run, under_stress

pytestmark = pytest.mark.t2


@pytest.mark.parametrize("name", ["calls", "threads"])
def test_output_is_the_same(hetcc: Path, tmp_path: Path, name: str) -> None:
    program = tmp_path / name
    output(hetcc, "-O2", PROGRAMS / f"{name}.c", "-o", program)
    stressed, stops, places = under_stress(program)
    assert stressed == output(program)
    assert stops > 100 and places > 20


def test_a_program_that_ends_badly(hetcc: Path, tmp_path: Path) -> None:
    """Its exit code is ours."""
    (tmp_path / "a.c").write_text('#include <stdio.h>\nint main(void) { puts("bad"); return 7; }\n')
    output(hetcc, "-O2", tmp_path / "a.c", "-o", tmp_path / "a")
    done = run(sys.executable, "-m", "toolchain.stress", "--free", 0, tmp_path / "a")
    assert (done.returncode, done.stdout) == (7, b"bad\n")


def test_what_is_not_ours_is_refused() -> None:
    done = run(sys.executable, "-m", "toolchain.stress", "/bin/true")
    assert done.returncode == 2
    assert re.fullmatch(rb"stress: /bin/true: hetcc did not make it, .*\n", done.stderr)
