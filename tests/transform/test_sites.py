"""The table of sites: what is packed comes back, by address; what is no table is refused."""

import sys
from pathlib import Path

import pytest

from transform.errors import TransformError
from transform.sites import Kind, Site, pack_sites, read_sites, unpack_sites

pytestmark = pytest.mark.t0

SITES = [
    Site(0x800010, 0, Kind.CALL, frame=48),
    Site(0x800020, 1, Kind.POLL, frame=48, target=0x800040),
    Site(0x800100, 0x80000000, Kind.SYSCALL),
]


def test_a_table_and_back() -> None:
    assert unpack_sites(pack_sites(reversed(SITES))) == SITES


@pytest.mark.parametrize("change", [slice(0, 1), slice(12, 13), slice(16 + 24, 16 + 25)])
def test_a_damaged_table(change: slice) -> None:
    data = bytearray(pack_sites(SITES))
    data[change] = b"\x7f"
    with pytest.raises(TransformError, match="a table of sites"):
        unpack_sites(bytes(data))


def test_a_table_that_is_cut() -> None:
    with pytest.raises(TransformError, match="a table of sites"):
        unpack_sites(pack_sites(SITES)[:-1])


def test_an_executable_that_hetcc_did_not_make() -> None:
    with pytest.raises(TransformError, match="no table of sites; only what hetcc has made can change ISA"):
        read_sites(Path(sys.executable).resolve())


def test_a_file_that_is_no_executable(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("nothing")
    with pytest.raises(TransformError, match="a: no executable"):
        read_sites(tmp_path / "a")


@pytest.mark.parametrize("data", [b"", b"UNISITE2" + bytes(8), pack_sites(SITES) + b"x"])
def test_what_is_no_table(data: bytes) -> None:
    with pytest.raises(TransformError, match="a table of sites"):
        unpack_sites(data)
