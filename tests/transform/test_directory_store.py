"""Pages images in a directory."""

from pathlib import Path

import pytest

from transform.directory_store import DirectoryStore
from transform.errors import ImageError

pytestmark = pytest.mark.t0


def test_ranges_are_read_and_patched_in_place(tmp_path: Path) -> None:
    pages = tmp_path / "pages-1.img"
    pages.write_bytes(b"0123456789")
    store = DirectoryStore(tmp_path)
    assert store.read("pages-1.img", 2, 3) == b"234"
    store.patch("pages-1.img", 8, b"ab")
    assert pages.read_bytes() == b"01234567ab"


def test_an_image_neither_ends_early_nor_grows(tmp_path: Path) -> None:
    pages = tmp_path / "pages-1.img"
    pages.write_bytes(b"0123456789")
    with pytest.raises(ImageError, match=r"pages-1\.img: byte 8: 3 bytes of pages were expected, 2 are there"):
        DirectoryStore(tmp_path).read("pages-1.img", 8, 3)
    with pytest.raises(ImageError, match="ends at 10"):
        DirectoryStore(tmp_path).patch("pages-1.img", 8, b"abc")
    assert pages.read_bytes() == b"0123456789"
    with pytest.raises(FileNotFoundError, match=r"pages-2\.img"):
        DirectoryStore(tmp_path).read("pages-2.img", 0, 1)
