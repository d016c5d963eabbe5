"""Kernels of the NAS Parallel Benchmarks: right on both ISAs, to the last digit the same."""

from pathlib import Path

import pytest

from tests.toolchain.pairs import ALL, PROGRAMS, output, output_of_both

pytestmark = pytest.mark.t2


@pytest.fixture(scope="module")
def npb(hetcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("npb") / "npb"
    output(hetcc, "-O2", *sorted((PROGRAMS / "npb").glob("*.c")), "-o", program, "-lm")
    return program


@pytest.mark.parametrize("size", "SW" if ALL else "S")
@pytest.mark.parametrize("kernel", ["ep", "is", "cg", "mg", "ft"])
def test_verifies(npb: Path, kernel: str, size: str) -> None:
    assert output_of_both(npb, kernel, size).endswith(b"\nSUCCESSFUL\n")
