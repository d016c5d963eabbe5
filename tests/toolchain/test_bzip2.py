"""bzip2, by its own tests."""

from pathlib import Path

import pytest

from tests.toolchain.pairs import make, on_each, unpack, wrapper

pytestmark = pytest.mark.t2


def test_its_own_tests(hetcc: Path, tmp_path: Path) -> None:
    """They compress and decompress three files, and compare them with what is known."""
    source = unpack("bzip2", tmp_path / "bzip2")
    make(source, "bzip2", f"CC={hetcc}")
    for words in on_each(source / "bzip2"):
        wrapper(words, source / "bzip2")
        make(source, "check", "--old-file=bzip2")
        assert len(list(source.glob("*.rb2"))) == len(list(source.glob("*.tst"))) == 3
        for written in [*source.glob("*.rb2"), *source.glob("*.tst")]:
            written.unlink()
