"""sqlite3: a workload in memory and in a file, beside what cc makes; and the file that one ISA has written, read by the
other. Its source becomes one file of C by its own configure and make, before anything is compiled.
"""

from pathlib import Path

import pytest

from tests.toolchain.pairs import PROGRAMS, make, on_each, output, unpack

pytestmark = pytest.mark.t2

FLAGS = ("-DSQLITE_OMIT_LOAD_EXTENSION", "-DSQLITE_ENABLE_MATH_FUNCTIONS", "-DSQLITE_THREADSAFE=1")
WORKLOAD = (PROGRAMS / "sqlite/workload.sql").read_bytes()


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
    return output("sh", "-c", '"$@"; true', "sh", *words, stdin=WORKLOAD)  # some statements must fail


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
