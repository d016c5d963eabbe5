"""The command line of hetcc."""

from pathlib import Path

import pytest

from toolchain.driver import main, parse
from toolchain.tools import ToolError

pytestmark = pytest.mark.t0


def test_words_go_where_they_belong(tmp_path: Path) -> None:
    (tmp_path / "libz.a").touch()
    command = parse(
        ["-O2", "-I", "inc", "-DX=1", "a.c", "b.o", "c.a", f"-L{tmp_path}", "-lz", "-lm", "-o", "prog", "-static"]
    )
    assert command.options == ["-O2", "-I", "inc", "-DX=1"]
    assert (command.sources, command.objects) == ([Path("a.c")], [Path("b.o")])
    assert command.archives == [Path("c.a"), tmp_path / "libz.a"]
    assert command.output == Path("prog")


def test_response_files(tmp_path: Path) -> None:
    (tmp_path / "words").write_text("-c\n-MMD -MF a.d")
    command = parse([f"@{tmp_path / 'words'}", "a.c"])
    assert command.only_compile
    assert command.options == ["-MMD", "-MF", "a.d"]


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-shared", "a.c"], "-shared: a shared library cannot be a part of a pair"),
        (["a.S"], "a.S: assembly is of one ISA"),
        (["a.f90"], "a.f90: neither C nor an object"),
        (["a.c", "-lnone"], "-lnone: there is no libnone.a in any directory"),
        (["a.c", "-o"], "-o: what is to follow it is missing"),
    ],
)
def test_refusals(words: list[str], reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        parse(words)


def test_one_line_and_an_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-O2"]) == 1
    assert capsys.readouterr().err == "hetcc: no sources and no objects: what is to be linked?\n"
