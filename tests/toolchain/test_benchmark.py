"""scripts/bench toolchain, quickly: it builds every program, measures, and finds that pairs write what others do."""

from pathlib import Path

import pytest

from tests.scripts.test_bench import results

pytestmark = pytest.mark.t2

DEADLINE = 900  # seconds; most of it builds programs


def test_everything_is_compared(repo_root: Path, tmp_path: Path) -> None:
    found = results(repo_root, tmp_path / "numbers", "toolchain", deadline=DEADLINE)["toolchain"]
    assert len(found["least"]) == 10
    assert [one["name"] for one in found["built"]] == ["npb", "lua", "bzip2", "minigzip"]
