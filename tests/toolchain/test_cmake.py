"""A project of cmake's, with hetcc as its C compiler: cmake asks about compiler and system, builds and tests."""

import shutil
from pathlib import Path

import pytest

from tests.toolchain.pairs import PROGRAMS, output, output_of_both
from toolchain.tools import LLVM

pytestmark = pytest.mark.t2


def test_a_project_is_configured_built_and_tested(hetcc: Path, tmp_path: Path) -> None:
    tools = [f"-DCMAKE_{name.upper()}={shutil.which(f'llvm-{name}-{LLVM}')}" for name in ("ar", "ranlib")]
    told = output("cmake", "-S", PROGRAMS / "cmake", "-B", tmp_path, f"-DCMAKE_C_COMPILER={hetcc}", *tools)
    assert b"Looking for no_such_function - not found" in told
    output("cmake", "--build", tmp_path, "--parallel", 2)
    assert b"100% tests passed" in output("ctest", "--test-dir", tmp_path)
    assert output_of_both(tmp_path / "words", "a", "b", "a", "c") == (
        b"words 1.2: 4, 3 different\nlong double: 16 bytes\n"
    )
