"""zlib: configured and built like anywhere, then its own tests, and larger files through its gzip."""

import gzip
from pathlib import Path

import pytest

from tests.toolchain.pairs import make, on_each, output, under_stress, unpack, wrapper

pytestmark = pytest.mark.t2

#: Copies of the sources that make a file of some MiB, and seconds between bursts of stops, at most.
COPIES, FREE = 4, 0.0003


@pytest.fixture(scope="module")
def source(hetcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = unpack("zlib", tmp_path_factory.mktemp("zlib") / "zlib")
    output("env", f"CC={hetcc}", "./configure", "--static", directory=source)
    make(source, "minigzip", "example")
    return source


def test_its_own_tests(source: Path) -> None:
    for words in zip(on_each(source / "minigzip"), on_each(source / "example"), strict=True):
        for command, name in zip(words, ("minigzip", "example"), strict=True):
            wrapper(command, source / name)
        told = make(source, "teststatic", "--old-file=minigzip", "--old-file=example", "--old-file=static")
        assert b"*** zlib test OK ***" in told


def test_a_file_of_all_kinds(source: Path) -> None:
    data = b"".join(path.read_bytes() for path in sorted(source.glob("*.[cho]")))
    compressed = [output(*words, "-9", stdin=data) for words in on_each(source / "minigzip")]
    assert compressed[0] == compressed[1]
    assert gzip.decompress(compressed[0]) == data
    for words in on_each(source / "minigzip"):
        assert output(*words, "-d", stdin=compressed[0]) == data


def test_under_stress(source: Path) -> None:
    """A file of some MiB, both ways."""
    data = b"".join(path.read_bytes() for path in sorted(source.glob("*.[cho]"))) * COPIES
    compressed, stops, places = under_stress(source / "minigzip_x86-64", "-9", free=FREE, stdin=data)
    assert compressed == output(source / "minigzip_x86-64", "-9", stdin=data)
    assert stops > 100 and places > 5
    assert under_stress(source / "minigzip_x86-64", "-d", free=FREE, stdin=compressed)[0] == data
