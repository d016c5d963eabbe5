"""scripts/bench toolchain, quickly: it builds every program, measures, and finds that pairs write what others do. isa:
processes of a pair are dumped and sent, with a change of ISA and without. stops: a process is stopped many times."""

from pathlib import Path

import pytest

from tests.scripts.test_bench import results

pytestmark = pytest.mark.t2

DEADLINE = 900  # seconds; most of it builds programs


def test_everything_is_compared(repo_root: Path, tmp_path: Path) -> None:
    found = results(repo_root, tmp_path / "numbers", "toolchain", deadline=DEADLINE)["toolchain"]
    assert len(found["least"]) == 10
    assert [one["name"] for one in found["built"]] == ["npb", "lua", "bzip2", "minigzip"]


def test_a_change_of_isa_is_compared(repo_root: Path, tmp_path: Path) -> None:
    usual, deep, large = results(repo_root, tmp_path / "numbers", "isa", deadline=DEADLINE)["isa"]["cases"]
    assert [(one["frames"], one["size"] >> 20) for one in (usual, deep, large)] == [(100, 1), (10_000, 1), (100, 4)]
    for one in (usual, deep, large):
        assert [len(one[kind]) for kind in ("changed", "plain", "added")] == [1, 1, 1]
        assert one["changed"][0] > one["added"][0] > 0


def test_stops_are_timed(repo_root: Path, tmp_path: Path) -> None:
    found = results(repo_root, tmp_path / "numbers", "stops", deadline=DEADLINE)["stops"]
    assert {one["threads"] for one in found["stops"]} == {4}
    assert all(one["waited"] > one["disturbed"] > 0 for one in found["stops"])
