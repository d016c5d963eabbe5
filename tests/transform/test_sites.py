"""The table of sites."""

import pytest

from transform.errors import TransformError
from transform.sites import Kind, Site, pack_sites, unpack_sites

pytestmark = pytest.mark.t0
SITES = [Site(0x1000, 7, Kind.CALL, frame=48), Site(0x1010, 8, Kind.POLL, 48, 0x1020), Site(0x2000, 1 << 31, Kind.WAIT)]


def test_what_was_packed_is_read_by_address() -> None:
    assert unpack_sites(pack_sites(reversed(SITES))) == SITES


@pytest.mark.parametrize("data", [b"", b"UNISITE2" + bytes(8), pack_sites(SITES)[:-1], pack_sites(SITES) + b"x"])
def test_a_damaged_table_is_refused(data: bytes) -> None:
    with pytest.raises(TransformError, match="a table of sites"):
        unpack_sites(data)
