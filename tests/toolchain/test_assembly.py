"""Markers that the pass leaves in code become labels where calls return to."""

import pytest

from toolchain.assembly import Marker, mark_sites
from toolchain.tools import AARCH64, X86_64, ToolError

pytestmark = pytest.mark.t0

X86 = """\
f:
\tcallq\tg
\t#APP
\t#UNIFIED-SITE 1 5
\t#NO_APP
\tmovq\t-8(%rbp), %rax
"""


def lines_of(text: str) -> list[str]:
    return text.split("\n")


def test_a_label_right_behind_the_call() -> None:
    marked = mark_sites(X86_64, X86)
    assert marked.sites == {1: Marker(1, 5)}
    assert lines_of(marked.text)[:4] == ["f:", "\tcallq\tg", ".Lsite1:", "\tmovq\t-8(%rbp), %rax"]


def test_what_code_generation_puts_in_between_stays_behind_the_label() -> None:
    text = X86.replace("\t#APP", "\taddq\t$16, %rsp\n\t#APP")
    assert lines_of(mark_sites(X86_64, text).text)[1:4] == ["\tcallq\tg", ".Lsite1:", "\taddq\t$16, %rsp"]


@pytest.mark.parametrize("call", ["\tbl\tg", "\tblr\tx8"])
def test_calls_of_aarch64(call: str) -> None:
    marked = mark_sites(AARCH64, f"f:\n{call}\n\t//APP\n\t//UNIFIED-SITE 0 5\n\t//NO_APP\n\tret\n")
    assert lines_of(marked.text)[:4] == ["f:", call, ".Lsite0:", "\tret"]


def test_a_site_that_starts_a_block_gets_a_nop() -> None:
    """Who jumps to that block has live registers, and must not meet a breakpoint."""
    marked = mark_sites(X86_64, X86.replace("\tmovq", ".LBB0_2:  # comment\n\tmovq"))
    assert lines_of(marked.text)[1:5] == ["\tcallq\tg", ".Lsite1:", "\tnop", ".LBB0_2:  # comment"]


def test_a_call_that_never_returns_at_the_end() -> None:
    marked = mark_sites(X86_64, "f:\n\tcallq\tabort\n\t#UNIFIED-SITE 0 5")
    assert lines_of(marked.text)[1:4] == ["\tcallq\tabort", ".Lsite0:", "\tnop"]


def test_the_table_has_a_place_for_each_number() -> None:
    lines = lines_of(mark_sites(X86_64, X86).text)
    assert lines[lines.index("unified_sites:") + 1 :][:3] == ["\t.quad 2", "\t.quad 0", "\t.quad .Lsite1"]


@pytest.mark.parametrize("text", ["f:\n\t#UNIFIED-SITE 3 5\n", X86 + X86])
def test_a_marker_that_was_moved_or_doubled(text: str) -> None:
    with pytest.raises(ToolError, match="has moved or doubled its marker"):
        mark_sites(X86_64, text)


def test_the_record_of_a_site() -> None:
    lines = lines_of(mark_sites(X86_64, X86).text)
    assert lines[lines.index('\t.section .unified.sites,"",@progbits') + 1 :][:2] == [
        "\t.quad .Lsite1, 0",
        "\t.long 1, 5, 1, 0",
    ]


def test_a_poll_is_a_nop_with_a_way_out() -> None:
    marked = mark_sites(X86_64, "f:\n.LBB0_1:\n\t#APP\n\t#UNIFIED-POLL 7 2 .LBB0_3\n\t#NO_APP\n\tincq\t%rax\n")
    assert lines_of(marked.text)[:5] == ["f:", ".LBB0_1:", ".Lsite7:", "\tnop", "\tincq\t%rax"]
    assert "\t.quad .Lsite7, .LBB0_3\n\t.long 7, 2, 2, 0" in marked.text
