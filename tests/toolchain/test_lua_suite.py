"""Lua's own test suite, on both ISAs: as it is for users, all of it, and all of it from the inside.

Runs only with IMGPROXY_LUA_TESTS, which names a copy of it (`lua.py`).
"""

from pathlib import Path

import pytest

from tests.toolchain.lua import pair, pair_to_look_into, suite
from tests.toolchain.pairs import output, under_stress

pytestmark = pytest.mark.t2

BEFORE = ("-e", "dofile 'before.lua'")
FOR_USERS = (*BEFORE, "-e", "_U = true")
DONE = b"\nfinal OK !!!\n"
#: How a command starts each of a pair, so that it is called as the command is: the suite starts that command itself.
STARTS = {"x86-64": 'exec -a "$0" ', "aarch64": 'exec qemu-aarch64 -0 "$0" '}
#: Seconds between bursts of stops, at most.
FREE = 0.001


@pytest.fixture(scope="module")
def lua(hetcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pair(hetcc, tmp_path_factory.mktemp("lua") / "pair")


@pytest.fixture(scope="module")
def open_lua(hetcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pair_to_look_into(hetcc, tmp_path_factory.mktemp("lua") / "open")


def run_all(program: Path, isa: str, place: Path, *options: str) -> bytes:
    """What it tells, of a run in a copy."""
    place = suite(place)
    command = place / "lua"
    command.write_text(f'#!/bin/bash\n{STARTS[isa]} {program}_{isa} "$@"\n')
    command.chmod(0o755)
    told = output(command, *options, "all.lua", directory=place)
    assert DONE in told
    return told


@pytest.mark.parametrize("isa", STARTS)
def test_for_users(lua: Path, tmp_path: Path, isa: str) -> None:
    run_all(lua, isa, tmp_path / "suite", *FOR_USERS)


@pytest.mark.parametrize("isa", STARTS)
def test_all(lua: Path, tmp_path: Path, isa: str) -> None:
    """Also what takes long, much memory, a shell, and interpreters that it starts."""
    told = run_all(lua, isa, tmp_path / "suite", *BEFORE)
    assert b"testing popen" in told and b"testing stand-alone interpreter" in told


@pytest.mark.parametrize("isa", STARTS)
def test_from_the_inside(open_lua: Path, tmp_path: Path, isa: str) -> None:
    """And what looks at memory, code and the collector, and has allocations fail."""
    assert b"testing C API" in run_all(open_lua, isa, tmp_path / "suite", *BEFORE)


def test_under_stress(lua: Path, tmp_path: Path) -> None:
    place = suite(tmp_path / "suite")
    told, stops, places = under_stress(lua, *FOR_USERS, "all.lua", free=FREE, directory=place)
    assert DONE in told
    assert stops > 100 and places > 50
