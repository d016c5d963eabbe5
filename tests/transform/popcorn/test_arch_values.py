"""Values that one ISA has alone."""

import pytest

from tests.transform.popcorn.tables import FP, constant_step, side, site
from transform.errors import TransformError
from transform.popcorn.arch_values import Step, calculated, make, steps
from transform.popcorn.places import Place, Where
from transform.popcorn.sections import ArchValue, Kind, Operation

pytestmark = pytest.mark.t0
THREE = Place(Where.REGISTER, 3)


def made_of(*values: ArchValue) -> list[Step]:
    one = site(arch=values)
    return steps(one, side("x86-64", [one]))


def test_what_needs_nothing_of_the_frame_is_done_at_once() -> None:
    (step,) = made_of(constant_step(Operation.SET, 0x12345), constant_step(Operation.MASK, ~0xFFF))
    assert step == Step(THREE, 8, Operation.SET, Place(Where.VALUE, 0x12000), 8)


@pytest.mark.parametrize(
    ("operation", "old", "operand", "result"),
    [
        (Operation.SET, 1, 7, 7),
        (Operation.ADD, 2**64 - 1, 2, 1),
        (Operation.SUBTRACT, 1, 2, 2**64 - 1),
        (Operation.MULTIPLY, 2**63, 2, 0),
        (Operation.DIVIDE, 2**64 - 1, 2, 2**63 - 1),
        (Operation.SHIFT_LEFT, 2**63 + 1, 1, 2),
        (Operation.SHIFT_RIGHT, 2**63, 63, 1),
        (Operation.SHIFT_RIGHT_SIGNED, 2**63, 62, 2**64 - 2),
        (Operation.SHIFT_RIGHT_SIGNED, 2**62, 61, 2),
        (Operation.MASK, 0x1FFF, 2**64 - 4096, 0x1000),
    ],
)
def test_operations(operation: Operation, old: int, operand: int, result: int) -> None:
    assert calculated(Step(THREE, 8, operation, THREE, 8), old, operand) == result


def test_steps_read_and_write_the_frame() -> None:
    other = constant_step(Operation.ADD, 0)._replace(operand=Kind.REGISTER, operand_register=12)
    slot = constant_step(Operation.SET, -8, False)._replace(operand=Kind.DIRECT, operand_register=FP["x86-64"])
    address = slot._replace(operand=Kind.INDIRECT, register=13)
    loaded = constant_step(Operation.LOAD_32, 0x7000, False, 14)
    values = {Place(Where.REGISTER, 12): 5, Place(Where.MEMORY, -24): 100, Place(Where.ADDRESS, -24): 0x7FE8,
              Place(Where.LOADED, 0x7000): 0xABCD}  # fmt: skip
    sizes = []

    def read(place: Place, size: int) -> int:
        sizes.append(size)
        return values[place]

    make(made_of(slot, other, address, loaded), read, lambda place, _, value: values.update({place: value}))
    assert [values[Place(Where.REGISTER, number)] for number in (3, 13, 14)] == [105, 0x7FE8, 0xABCD]
    assert sizes == [8, 8, 8, 8, 4]


@pytest.mark.parametrize(
    "value",
    [
        constant_step(Operation.LOAD_64, 0x7000),
        constant_step(Operation.ADD, 1, generated=False),
        constant_step(Operation.SET, 1)._replace(kind=Kind.DIRECT),
        constant_step(Operation.SET, 1)._replace(operand=Kind.CONSTANT_INDEX),
        constant_step(Operation.SET, -90, False)._replace(operand=Kind.DIRECT, operand_register=6),
        constant_step(Operation.SET, -8)._replace(operand=Kind.INDIRECT, operand_register=6),
    ],
)
def test_what_means_nothing_is_refused(value: ArchValue) -> None:
    with pytest.raises(TransformError, match=r"call site 1 .*a value of one ISA is made by"):
        made_of(value)


@pytest.mark.parametrize(("operation", "operand"), [(Operation.DIVIDE, 0), (Operation.SHIFT_RIGHT, 64)])
def test_what_gives_nothing_is_refused(operation: Operation, operand: int) -> None:
    with pytest.raises(TransformError, match=f"made by {operation.name} with {operand:#x}"):
        made_of(constant_step(Operation.SET, 1), constant_step(operation, operand))
