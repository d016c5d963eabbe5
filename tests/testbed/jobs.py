"""Programs that work, as jobs for journeys between ISAs: how each pair is built, and what it is run with.

NPB kernels, Lua in a loop, sqlite3 that writes to a file, Lua's own tests. Each builder takes an empty folder.
"""

import shutil
from pathlib import Path

from tests.testbed.journeys import WRITTEN, Job
from tests.toolchain import lua as lua54
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, make, output, unpack
from tests.toolchain.test_sqlite import FLAGS

#: Kernels and classes, each of some tenths of a second here.
KERNELS = (("ep", "S"), ("is", "W"), ("cg", "W"), ("mg", "W"), ("ft", "S"), ("ft", "W"))
#: Lua programs, and how often one after the other: some seconds here.
LUA = ("coroutines", "errors", "objects", "strings")
TIMES = "6"
#: How often Lua's own tests run, one after the other.
SUITES = "3"


def kernels(place: Path) -> list[Job]:
    """All kernels."""
    output(
        make_toolchain(),
        "-O2",
        *sorted((PROGRAMS / "npb").glob("*.c")),
        *("-o", "npb", "--layout", place / "pair", "-lm"),
        directory=place,
    )
    return [Job(place / "pair", "npb", words) for words in KERNELS]


def lua(place: Path) -> list[Job]:
    """Lua programs of ours."""
    pair = lay_out(lua54.pair(make_toolchain(), place / "source"), place / "pair")
    programs = [str(PROGRAMS / f"lua/{name}.lua") for name in LUA]
    return [Job(pair, "lua", (str(PROGRAMS / "again.lua"), TIMES, *programs))]


def sqlite(place: Path) -> list[Job]:
    """sqlite3 under writes. It takes minutes to be built."""
    source = unpack("sqlite3", place / "source")
    output("./configure", "--disable-tcl", "--disable-readline", directory=source)
    make(source, "sqlite3.c", "shell.c")
    layout = ("-o", "sqlite", "--layout", place / "pair", "-lpthread", "-lm")
    output(make_toolchain(), "-O2", *FLAGS, source / "sqlite3.c", source / "shell.c", *layout, directory=place)
    return [sqlite_job(place / "pair")]


def sqlite_job(pair: Path) -> Job:
    """Some of its statements must fail."""
    return Job(pair, "sqlite", ("file.db",), PROGRAMS / "sqlite/workload.sql", options=("--file-locks",), code=1)


def suite(place: Path) -> list[Job]:
    """Lua's own tests, in a loop."""
    (job,) = lua(place)
    files = sorted(lua54.suite(place / "suite").glob("*.lua"))
    words = (str(PROGRAMS / "suite.lua"), SUITES, WRITTEN)
    return [Job(job.pair, "lua", words, files=tuple(files), stdout="/dev/null")]


def lay_out(program: Path, pair: Path) -> Path:
    """What `hetcc --layout` would have made of a link that a Makefile did."""
    (pair / "bin").mkdir(parents=True)
    for isa in ("x86-64", "aarch64"):
        shutil.copy(f"{program}_{isa}", pair / "bin")
    shutil.copy(program, pair)
    return pair
