"""The proof of each link: code that keeps state beside the frame does not pass, and function and block are named."""

from pathlib import Path

import pytest

from toolchain.code import generate_code
from toolchain.tools import ISAS, Isa, ToolError

pytestmark = pytest.mark.t2

SITE = 'call void asm sideeffect "#UNIFIED-SITE 0 0", ""()'
STOP = "call preserve_nonecc i64 @g()"
HEAD = "declare preserve_nonecc i64 @g()\ndeclare i64 @leaf()\n"


def generated(isa: Isa, code: str, place: Path) -> str:
    """The assembly of a function f with this body."""
    (place / "pads").touch()
    attributes = 'nounwind noredzone "frame-pointer"="all"'
    (place / "a.ll").write_text(f"{HEAD}define preserve_nonecc i64 @f(i64 %a) {attributes} {{\nstart:\n{code}\n}}\n")
    generate_code(isa, place / "a.ll", place / "a.s", place / "pads")
    return (place / "a.s").read_text()


@pytest.mark.usefixtures("hetcc")
@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            f"%b = {STOP}\n{SITE}\n%c = add i64 %a, %b\nret i64 %c",
            "a slot of code generation's own is live across a site",
        ),
        (f"%b = call i64 @leaf()\n{SITE}\nret i64 %b", "register .* would survive the call at a site"),
        (f"%b = {STOP}\n{STOP}\n{SITE}\nret i64 %b", "a call of our convention without a site"),
        (f"{SITE}\nret i64 %a", "a site without a call"),
    ],
    ids=["spilled", "convention", "no site", "no call"],
)
def test_seeded_faults(isa: Isa, code: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ToolError, match=rf"error: f, block 0 \(start\): {reason}"):
        generated(isa, code, tmp_path)
    assert not (tmp_path / "a.s").exists()


@pytest.mark.usefixtures("hetcc")
@pytest.mark.parametrize("isa", ISAS, ids=lambda isa: isa.name)
def test_what_is_good(isa: Isa, tmp_path: Path) -> None:
    """A value that a leaf leaves in a register, and the result of a stop."""
    code = f"%c = call i64 @leaf()\n%d = add i64 %c, %a\n%b = {STOP}\n{SITE}\nret i64 %b"
    assert "UNIFIED-SITE 0 0" in generated(isa, code, tmp_path)
