"""sqlite3: a workload in memory and in a file, beside what cc makes; and the file that one ISA has written, read by the
other. Its source becomes one file of C by its own configure and make, before anything is compiled.
"""

from pathlib import Path

import pytest

from tests.toolchain.pairs import PROGRAMS, make, on_each, output, run, under_stress, unpack

pytestmark = pytest.mark.t2

FLAGS = ("-DSQLITE_OMIT_LOAD_EXTENSION", "-DSQLITE_ENABLE_MATH_FUNCTIONS", "-DSQLITE_THREADSAFE=1")
WORKLOAD = (PROGRAMS / "sqlite/workload.sql").read_bytes()
#: Its exit code: some statements must fail.
SOME_FAILED = 1
#: Seconds between bursts of stops, at most.
FREE = 0.0003


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = unpack("sqlite3", tmp_path_factory.mktemp("sqlite") / "sqlite3")
    output("./configure", "--disable-tcl", "--disable-readline", directory=source)
    make(source, "sqlite3.c", "shell.c")
    return source


@pytest.fixture(scope="module")
def sqlite(hetcc: Path, source: Path) -> Path:
    output(hetcc, "-O2", *FLAGS, source / "sqlite3.c", source / "shell.c", "-o", source / "pair", "-lpthread", "-lm")
    return source / "pair"


@pytest.fixture(scope="module")
def expected(source: Path) -> bytes:
    output(
        "cc", "-O0", *FLAGS, source / "sqlite3.c", source / "shell.c", "-o", source / "reference", "-lpthread", "-lm"
    )
    return written(source / "reference", ":memory:")


def written(*words: object) -> bytes:
    done = run(*words, stdin=WORKLOAD)
    assert done.returncode == SOME_FAILED, done.stderr.decode(errors="replace")
    return done.stdout


def test_the_same_in_memory(sqlite: Path, expected: bytes) -> None:
    assert expected.count(b"\nok\n") == 2
    for words in on_each(sqlite):
        assert written(*words, ":memory:") == expected


def test_files_of_one_are_files_of_the_other(sqlite: Path, expected: bytes, tmp_path: Path) -> None:
    for number, words in enumerate(on_each(sqlite)):
        assert written(*words, tmp_path / f"{number}.db").replace(b"delete\n", b"memory\n") == expected
    assert (tmp_path / "0.db").read_bytes() == (tmp_path / "1.db").read_bytes()
    dumps = [
        output(*words, tmp_path / f"{number}.db", ".dump") for number, words in enumerate(reversed(on_each(sqlite)))
    ]
    assert dumps[0] == dumps[1] and len(dumps[0]) > 400_000


def test_under_stress(sqlite: Path, tmp_path: Path) -> None:
    """In a file, which is the same in the end, too."""
    files = [tmp_path / "stressed.db", tmp_path / "undisturbed.db"]
    stressed, stops, places = under_stress(sqlite, files[0], free=FREE, stdin=WORKLOAD, code=SOME_FAILED)
    assert stressed == written(sqlite, files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
    assert stops > 100 and places > 50
