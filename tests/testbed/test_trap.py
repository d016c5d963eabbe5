"""`imgproxy trap`, `imgproxy spawn`, the stress runner, and what our libc does in its own way, on aarch64: in an arm64
guest, which has a kernel of its own. Minutes: run with IMGPROXY_PROGRAMS=all."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.testbed.guest import ROOT, guest
from tests.testbed.guest_nodes import PATIENCE
from tests.toolchain import lua
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, SEED, make, output, unpack

pytestmark = pytest.mark.t3

PAIRS = ("busy", "libc")
#: Of busy.c: it runs for a minute there, of which each stop takes several seconds to begin; and under stress.
ROUNDS, STRESSED = 1500, 3
TRAPS = 2
STOPS = 300
#: Seconds between bursts of stops, at most.
FREE = 0.02


async def test_on_aarch64(tmp_path: Path) -> None:
    """Stopped, each time at points, and overwritten what must not matter, programs write what they should."""
    for name in PAIRS:
        output(make_toolchain(), "-O2", PROGRAMS / f"{name}.c", "-w", "-o", tmp_path / name)
    async with guest("arm64") as vm:
        for name in PAIRS:
            await vm.put(tmp_path / f"{name}_aarch64", f"/run/{name}", 0o755)
        done = await vm.run("/run/libc", deadline=PATIENCE)
        assert (done.code, done.stdout) == (0, output(tmp_path / "libc").decode()), done.stderr
        words = ["python3", ROOT / "tests/testbed/trapped.py", TRAPS, SEED, "listen", "/run/busy", ROUNDS]
        done = await vm.run(*words, deadline=PATIENCE)
        assert done.code == 0, done.output
        lines = done.stdout.splitlines(keepends=True)
        assert all("is stopped after" in line for line in lines[: TRAPS + 1])
        assert "".join(lines[TRAPS + 1 :]).encode() == output(tmp_path / "busy", ROUNDS)
        words = ["python3", "-m", "toolchain.stress", "--free", "0", "--stops", STOPS, "/run/busy", STRESSED]
        stressed = await vm.run(*words, deadline=PATIENCE)
        assert (stressed.code, stressed.stdout) == (0, output(tmp_path / "busy", STRESSED).decode()), stressed.stderr
        assert f"{STOPS} stops at " in stressed.stderr


@dataclass(frozen=True)
class Stressed:
    """A program, and what it is run with in a folder, which has some files that it reads."""

    program: Path
    words: tuple[str, ...]
    folder: Path
    files: tuple[str, ...] = ()


def programs(place: Path) -> list[Stressed]:
    """Built."""
    compiler = make_toolchain()
    output(compiler, "-O2", *sorted((PROGRAMS / "npb").glob("*.c")), "-o", place / "npb", "-lm")
    source = unpack("bzip2", place / "bzip2")
    make(source, "bzip2", f"CC={compiler}")
    (place / "data").write_bytes(b"".join(path.read_bytes() for path in sorted(source.glob("*.c"))))
    return [
        Stressed(lua.pair(compiler, place / "lua"), ("objects.lua",), PROGRAMS / "lua", ("objects.lua",)),
        Stressed(place / "npb", ("cg", "S"), place),
        Stressed(source / "bzip2", ("-9", "-c", "data"), place, ("data",)),
    ]


async def test_programs_under_stress(tmp_path: Path) -> None:
    """Lua, a kernel and bzip2 write what they write here, undisturbed."""
    stressed = programs(tmp_path)
    async with guest("arm64") as vm:
        for one in stressed:
            folder = f"/run/{one.program.name}"
            assert (await vm.run("mkdir", folder)).code == 0
            await vm.put(Path(f"{one.program}_aarch64"), f"{folder}/program", 0o755)
            for name in one.files:
                await vm.put(one.folder / name, f"{folder}/{name}")
            how = ["--free", FREE, "--stops", STOPS, "--seed", SEED, "./program", *one.words]
            command = await vm.start("python3", "-m", "toolchain.stress", *how, directory=folder)
            done = await command.wait(PATIENCE)
            assert done.code == 0, done.stderr
            assert command.output == output(f"{one.program}_x86-64", *one.words, directory=one.folder)
            assert f"{STOPS} stops at " in done.stderr
            print(one.program.name, done.stderr)
