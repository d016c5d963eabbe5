"""Lua 5.4: its interpreter computes by labels as values, has variable arguments everywhere, and leaves errors and
coroutines by longjmp. What our Lua programs write is what they write with an interpreter that cc made.
"""

from pathlib import Path

import pytest

from tests.toolchain.lua import pair
from tests.toolchain.pairs import PROGRAMS, make, output, output_of_both, under_stress, unpack

pytestmark = pytest.mark.t2

SCRIPTS = sorted(path.name for path in (PROGRAMS / "lua").glob("*.lua"))


@pytest.fixture(scope="module")
def lua(hetcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pair(hetcc, tmp_path_factory.mktemp("lua") / "pair")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = unpack("lua5.4", tmp_path_factory.mktemp("lua") / "reference") / "src"
    make(source, "lua", "CFLAGS=-DLUA_COMPAT_5_3 -DLUA_USE_POSIX")
    return source / "lua"


@pytest.mark.parametrize("script", SCRIPTS)
def test_programs_write_the_same(lua: Path, reference: Path, script: str) -> None:
    expected = output(reference, script, directory=PROGRAMS / "lua")
    assert len(expected) > 200
    assert output_of_both(lua, script, directory=PROGRAMS / "lua") == expected


def test_under_stress(lua: Path) -> None:
    program = ["objects.lua"]
    stressed, stops, places = under_stress(lua, *program, free=0.001, directory=PROGRAMS / "lua")
    assert stressed == output(lua, *program, directory=PROGRAMS / "lua")
    assert stops > 100 and places > 30
