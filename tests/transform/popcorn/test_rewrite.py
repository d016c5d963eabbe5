"""Stacks that cannot be made for the target."""

import pytest

from tests.transform.popcorn.tables import constant_step, side, site
from transform.errors import TransformError
from transform.popcorn.matching import match
from transform.popcorn.pointers import Pointers
from transform.popcorn.rewrite import Layout, Rewritten, rewrite
from transform.popcorn.sections import CallSite, Kind, LiveValue, Operation, Saved
from transform.popcorn.unwind import Frame, Stack

pytestmark = pytest.mark.t0
LOW = 0x7FFF0000
START = 2**64 - 1
WORD = LiveValue(Kind.REGISTER, 8, 3, 0)
SLOT = LiveValue(Kind.INDIRECT, 8, 29, -8)


def load(address: int, length: int) -> bytes:
    return address.to_bytes(length, "little")


def rewritten(ours: list[CallSite], theirs: list[CallSite], values: dict[int, int]) -> Rewritten:
    """Of a thread on x86-64 whose frames stand at the call sites."""
    source, target = side("x86-64", ours), side("aarch64", theirs)
    frames, at = [], LOW
    for one in ours:
        at += one.frame_size
        frames.append(Frame(one, at, values))
        values = {number: value for number, value in values.items() if number in source.machine.kept}
    stack = Stack("thread", LOW, at, frames, bytes(at - LOW))
    layout = Layout(stack, [match(one, source, target) for one in ours])
    return rewrite(layout, Pointers([(LOW, at)], layout.variables(), layout.frame_pointers()), source, target, load)


def sites(*inner: CallSite) -> list[CallSite]:
    return [*inner, site(START, 32, address=0x9008)]


def test_the_innermost_frame_alone() -> None:
    kept = LiveValue(Kind.REGISTER, 8, 5, 0)
    made = rewritten([site(START, 32, [WORD])], [site(START, 64, [kept])], {0: 1, 1: 2, 3: 77, 17: 1 << 100})
    assert made.low == LOW + 32 - 64
    assert made.contents == bytes(64)
    assert (made.registers.pc, made.registers.values[5], made.registers.values[30]) == (0x1008, 77, 0x1008)
    values = made.registers.values
    assert (values[0], values[1], values[64], values[29], values[31]) == (1, 2, 1 << 100, LOW + 16, made.low)


def test_a_value_goes_where_an_inner_frame_has_saved_its_register() -> None:
    ours = sites(site(1, 64), site(2, 64, [WORD], address=0x2008, saved=[Saved(3, -8)]))
    kept = LiveValue(Kind.REGISTER, 8, 19, 0)
    theirs = sites(site(1, 64, saved=[Saved(19, -24)]), site(2, 64, [kept], address=0x2008, saved=[Saved(19, -8)]))
    made = rewritten(ours, theirs, {3: 0x5A5A})
    assert made.contents[64 - 16 - 24 :][:8] == (0x5A5A).to_bytes(8, "little")
    assert 19 not in made.registers.values


def test_values_from_the_executable() -> None:
    step = constant_step(Operation.LOAD_32, 0x1234, generated=False, register=7)
    made = rewritten([site(START, 32)], [site(START, 32, arch=[step])], {})
    assert made.registers.values[7] == 0x1234


@pytest.mark.parametrize(
    ("ours", "theirs", "values", "reason"),
    [
        (
            sites(site(1, 64, [WORD])),
            sites(site(1, 64, [SLOT])),
            {},
            "has 8 bytes in register 3, which the",
        ),
        (
            sites(site(1, 64), site(2, 64, [WORD._replace(register=1)], address=0x2008)),
            sites(site(1, 64), site(2, 64, [SLOT], address=0x2008)),
            {1: 5},
            "the function that calls at 0x2008 has 8 bytes in register 1, which the calls since do not keep",
        ),
        (
            sites(site(1, 64), site(2, 64, [WORD], address=0x2008)),
            sites(site(1, 64), site(2, 64, [WORD], address=0x2008)),
            {3: 5},
            "8 bytes in register 3 of a caller, which a call does not keep",
        ),
        (
            sites(site(1, 64, [WORD])),
            sites(site(1, 64, [WORD._replace(register=19)])),
            {3: 5},
            "uses register 19, which its caller keeps, and does not save it",
        ),
        (
            sites(site(1, 64, [WORD])),
            sites(site(1, 64, [SLOT])),
            {3: LOW + 8},
            "is on a stack and in no variable",
        ),
        (sites(site(1, 64)), sites(site(1, 64)), {0: LOW + 8}, "is on a stack and in no variable"),
        (
            [site(START, 32, [WORD])],
            [site(START, 32, [SLOT._replace(offset=16)])],
            {3: 5},
            "call site 18446744073709551615 has a value beyond the end of the stack",
        ),
        (
            [site(START, 32, [WORD._replace(kind=Kind.INDIRECT, register=6, offset=16)])],
            [site(START, 32, [SLOT])],
            {},
            "call site 18446744073709551615 has a value beyond the end of the stack",
        ),
        (
            [site(START, 32)],
            [site(START, 32, arch=[constant_step(Operation.ADD, 1)])],
            {},
            "a value is made from register 3, which has none",
        ),
    ],
)
def test_what_is_not_certain_is_refused(
    ours: list[CallSite], theirs: list[CallSite], values: dict[int, int], reason: str
) -> None:
    with pytest.raises(TransformError, match=f"^thread: .*{reason}"):
        rewritten(ours, theirs, values)
