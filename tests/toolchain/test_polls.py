"""Loops without calls have a poll, and go on rightly behind its other way: here each poll is taken each time."""

from pathlib import Path

import pytest

from tests.toolchain.test_pairs import PROGRAMS, assert_same_on_both, output
from toolchain import assembly
from toolchain.driver import main
from toolchain.tools import AARCH64, X86_64
from transform.sites import Kind, read_sites

pytestmark = pytest.mark.t2


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> str:
    program = tmp_path_factory.mktemp("loops") / "reference"
    output("cc", "-O1", PROGRAMS / "loops.c", "-o", program)
    return output(program)


def test_loops_with_polls(hetcc: Path, tmp_path: Path, reference: str) -> None:
    output(hetcc, "-O2", PROGRAMS / "loops.c", "-o", tmp_path / "loops")
    assert_same_on_both(tmp_path / "loops", reference)
    sites = read_sites(tmp_path / "loops_x86-64")
    polls = [site for site in sites if site.kind == Kind.POLL]
    assert len(polls) > 5
    assert all(poll.target for poll in polls)


@pytest.mark.usefixtures("hetcc")
def test_every_poll_taken(tmp_path: Path, reference: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly, "POLL", {X86_64: "\tjmp\t{target}", AARCH64: "\tb\t{target}"})
    assert main(["-O2", str(PROGRAMS / "loops.c"), "-o", str(tmp_path / "loops")]) == 0
    assert_same_on_both(tmp_path / "loops", reference)
