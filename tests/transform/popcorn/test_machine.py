"""What is fixed for an ISA, against the numbers that the tests have written down."""

import pytest

from tests.transform.popcorn.programs import ISAS
from transform.popcorn.machine import MACHINES

pytestmark = pytest.mark.t0


def test_registers() -> None:
    for isa in ISAS:
        machine = MACHINES[isa.name]
        assert (machine.frame_pointer, machine.stack_pointer, machine.return_address) == (
            isa.frame,
            isa.stack,
            isa.link,
        )
        assert machine.kept == {*isa.kept, *isa.kept_vectors, isa.frame}
        assert {machine.size(register) for register in (*isa.kept, *isa.scratch, *isa.results)} == {8}
        assert {machine.size(one) for one in (*isa.kept_vectors, *isa.scratch_vectors, *isa.vector_results)} == {16}
        assert machine.size(200) == 0
