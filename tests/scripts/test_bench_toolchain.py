"""scripts/bench toolchain and stops: what they make of their numbers. All of it is run by
tests/toolchain/test_benchmark.py."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from scripts.benchmarks import stops
from scripts.benchmarks.nodes import CommandFailed
from scripts.benchmarks.pairs import Built
from scripts.benchmarks.toolchain import Subject, judged, measure
from scripts.benchmarks.trial import Setting

pytestmark = pytest.mark.t2


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """As much of one as measuring needs."""
    nowhere = Path(os.devnull)
    said: list[str] = []
    return Setting(tmp_path, tmp_path, nowhere, nowhere, 2, True, None, None, say=said.append)


def program(place: Path, kind: str, text: str) -> None:
    path = place / "built" / kind / "program"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_cpu_time_is_measured_not_waiting(setting: Setting, tmp_path: Path) -> None:
    program(tmp_path, "plain", "n=0; while [ $n -lt 20000 ]; do n=$((n + 1)); done; echo done")
    program(tmp_path, "pair", "read line; echo $line")
    answer = tmp_path / "answer"
    answer.write_text("done\n")
    least = measure(setting, tmp_path, [Subject("one", "program", (), answer, turns=2)])
    plain, pair = least["one"]
    assert plain > pair > 0


@pytest.mark.parametrize("other", ["echo else", "exit 3"])
def test_programs_that_do_not_do_the_same_are_an_error(setting: Setting, tmp_path: Path, other: str) -> None:
    program(tmp_path, "plain", "echo done")
    program(tmp_path, "pair", other)
    with pytest.raises(CommandFailed, match=r"writes something else|exit code 3"):
        measure(replace(setting, repeats=1), tmp_path, [Subject("one", "program", ())])


def test_figures() -> None:
    built = [Built("lua", (100 << 10, 150 << 10), (2.0, 61.0)), Built("npb", (1 << 20, 2 << 20), (1.0, 2.0))]
    report = judged({"A": (1.0, 1.21), "B": (2.0, 2.0)}, built)
    assert report.rows == [
        ("A", "1.000 s", "1.210 s", "1.210"),
        ("B", "2.000 s", "2.000 s", "1.000"),
        ("lua, code and data", "100 KiB", "150 KiB", "1.50"),
        ("npb, code and data", "1024 KiB", "2048 KiB", "2.00"),
        ("lua, built in", "2.0 s", "61.0 s", ""),
        ("npb, built in", "1.0 s", "2.0 s", ""),
    ]
    assert [(round(one.value, 3), one.limit, one.reached) for one in report.targets] == [
        (1.1, 1.06, False),
        (1.21, 1.2, False),
        (61.0, 60.0, False),
    ]


def test_figures_of_stops() -> None:
    found = [stops.Stop(milliseconds / 1000, milliseconds / 100, 4) for milliseconds in range(1, 102)]
    assert stops.judged(found).rows == [
        ("threads stand", "51.0 ms", "100.0 ms", "101.0 ms"),
        ("until it is stopped, from the order", "510.0 ms", "1000.0 ms", "1010.0 ms"),
    ]
