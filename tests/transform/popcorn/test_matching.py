"""Records of two executables that cannot be of one program, or mean what is not known."""

import pytest

from tests.transform.popcorn.tables import FP, side, site
from transform.errors import TransformError
from transform.popcorn.matching import Move, Variable, match
from transform.popcorn.places import Place, Where
from transform.popcorn.sections import CallSite, Kind, LiveValue

pytestmark = pytest.mark.t0
X86, ARM = "x86-64", "aarch64"
SPILLED = LiveValue(Kind.INDIRECT, 8, FP[X86], -8)
THERE = LiveValue(Kind.INDIRECT, 8, FP[ARM], -16)
VARIABLE = LiveValue(Kind.DIRECT, 24, FP[X86], -24, alloca=True)


def plan_of(ours: list[LiveValue], theirs: list[LiveValue]) -> object:
    one, other = site(5, 64, ours), site(5, 96, theirs)
    return match(one, side(X86, [one]), side(ARM, [other]))


def test_places_are_from_the_cfa() -> None:
    kept = LiveValue(Kind.REGISTER, 8, 19, 0, duplicate=True)
    below = LiveValue(Kind.DIRECT, 24, 31, 8, alloca=True)
    one, other = site(5, 64, [VARIABLE, SPILLED]), site(5, 96, [below, THERE, kept])
    plan = match(one, side(X86, [one]), side(ARM, [other]))
    assert plan.variables == [Variable(24, -40, -88)]
    assert plan.moves == [Move(8, Place(Where.MEMORY, -24), (Place(Where.MEMORY, -32), Place(Where.REGISTER, 19)))]


def test_a_place_that_the_compiler_made_for_the_record_is_read_and_not_written() -> None:
    address = LiveValue(Kind.DIRECT, 8, FP[X86], -24, temporary=True)
    one, other = site(5, 64, [address]), site(5, 96, [THERE])
    plan = match(one, side(X86, [one]), side(ARM, [other]))
    assert plan.moves == [Move(8, Place(Where.ADDRESS, -40), (Place(Where.MEMORY, -32),))]
    assert match(other, side(ARM, [other]), side(X86, [one])).moves == []


@pytest.mark.parametrize(
    ("ours", "theirs", "reason"),
    [
        ([SPILLED], [], "1 live values on x86-64, 0 on aarch64"),
        ([SPILLED], [THERE._replace(pointer=True)], "a pointer on one ISA only"),
        ([SPILLED], [THERE._replace(size=4)], "a value of 8 and 4 bytes:"),
        ([VARIABLE], [THERE], "a variable on the stack on one ISA only"),
        ([VARIABLE], [VARIABLE._replace(size=32, register=29, offset=-32)], "24 and 32 bytes, as a va_list has"),
        ([SPILLED._replace(kind=Kind.CONSTANT)], [THERE._replace(kind=Kind.CONSTANT)], "the constants -8 and -16"),
        ([SPILLED._replace(duplicate=True)], [THERE], "a further place of no value"),
        ([VARIABLE, SPILLED._replace(duplicate=True)], [THERE], "a further place of no value"),
        ([SPILLED], [THERE, THERE._replace(size=4, duplicate=True)], "a value of 8 and 4 bytes"),
        ([SPILLED._replace(kind=Kind.CONSTANT)], [THERE, THERE._replace(size=4, duplicate=True)], "4 and 8 bytes for"),
        ([SPILLED._replace(size=4, pointer=True)], [THERE._replace(size=4, pointer=True)], "a pointer of 4 bytes"),
        ([SPILLED._replace(register=3)], [THERE], "a place relative to register 3"),
        ([SPILLED._replace(offset=-64)], [THERE], "8 bytes at -80 from the end of a frame of 64"),
        ([SPILLED], [THERE._replace(offset=-4)], "8 bytes at -20 from the end of a frame of 96"),
        ([SPILLED], [THERE._replace(offset=8)], "8 bytes at -8 from the end"),
        ([SPILLED._replace(kind=Kind.DIRECT)], [THERE], "no variable at a variable's place"),
        ([VARIABLE._replace(kind=Kind.INDIRECT)], [VARIABLE._replace(register=29)], "a variable that is not in memory"),
        ([SPILLED], [LiveValue(Kind.REGISTER, 8, 29, 0)], "8 bytes in register 29 of aarch64"),
        ([SPILLED], [LiveValue(Kind.REGISTER, 8, 19, 8)], "register 19 of aarch64, bit 8"),
        ([SPILLED], [LiveValue(Kind.REGISTER, 8, 40, 0)], "register 40 of aarch64"),
        ([LiveValue(Kind.REGISTER, 16, 3, 0)], [THERE._replace(size=16)], "16 bytes in register 3 of x86-64"),
        ([SPILLED._replace(kind=Kind.CONSTANT_INDEX)], [THERE], "has no constant -8"),
    ],
)
def test_records_that_do_not_match_are_refused(ours: list[LiveValue], theirs: list[LiveValue], reason: str) -> None:
    with pytest.raises(TransformError, match=f"0x1008.*{reason}"):
        plan_of(ours, theirs)


def test_a_call_site_of_one_executable_alone_is_refused() -> None:
    one: CallSite = site(5)
    with pytest.raises(TransformError, match="prog_aarch64: has no call site 5, which prog_x86-64 has"):
        match(one, side(X86, [one]), side(ARM, [site(6)]))
