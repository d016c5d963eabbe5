"""The compiler's own records."""

import pytest

from tests.transform.popcorn.encoding import tables
from tests.transform.popcorn.programs import POOL, X86, Program
from transform.errors import TransformError
from transform.popcorn.stackmaps import constants_by_address, modules

pytestmark = pytest.mark.t0
PROGRAM = Program(3)
DATA, _ = tables(PROGRAM, X86)[".llvm_pcn_stackmaps"]
LIVE, _ = tables(PROGRAM, X86)[".stack_transform.live"]


def test_modules_are_read() -> None:
    empty, module = modules("prog", DATA)
    assert (empty.functions, empty.constants, empty.sites) == ((), (1,), ())
    assert module.constants == POOL
    assert [one.address for one in module.functions] == [one.address["x86-64"] for one in PROGRAM.functions]
    assert b"".join(one.locations for one in module.sites) == LIVE
    assert list(modules("prog", b"")) == []


def test_the_pool_of_each_call_site() -> None:
    pools = constants_by_address("prog", DATA)
    assert pools == {site.addresses["x86-64"]: POOL for site in PROGRAM.sites}


@pytest.mark.parametrize("data", [DATA[:-8], DATA[:30], DATA + b"\3\0\0\0\xff\xff\xff\xff"])
def test_a_damaged_section_is_refused(data: bytes) -> None:
    with pytest.raises(TransformError, match=r"^prog: \.llvm_pcn_stackmaps: is damaged"):
        list(modules("prog", data))
