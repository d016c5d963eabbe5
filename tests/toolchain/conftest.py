"""hetcc with all that it needs, made by scripts/toolchain where it is missing."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.toolchain import lua
from tests.toolchain.pairs import ALL

#: Programs that take minutes; the others stand for them where ALL is not asked for.
LONG = [f"test_{name}.py" for name in ("benchmark", "bzip2", "cmake", "redis", "sqlite", "zlib")]
collect_ignore = [] if ALL else LONG
if not lua.SUITE:
    collect_ignore = [*collect_ignore, "test_lua_suite.py"]


def make_toolchain() -> Path:
    """The command `hetcc`, ready to be used."""
    done = subprocess.run([str(ROOT / "scripts/toolchain"), "setup"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Path(sys.executable).parent / "hetcc"


@pytest.fixture(scope="session")
def hetcc() -> Path:
    return make_toolchain()
