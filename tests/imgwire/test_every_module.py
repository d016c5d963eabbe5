"""Every module of the pure packages has its test file."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.t0

TESTED_ELSEWHERE = ("generate",)
"""generate.py makes the generated classes, which test_proto.py compares with their sources."""


def modules(package: Path) -> set[str]:
    """The names of the modules, those of sub-packages included; generated ones are tested with what uses them."""
    found = {path.stem.strip("_") for path in package.rglob("*.py") if path.parent.name != "proto"}
    return found - {"init", *TESTED_ELSEWHERE}


@pytest.mark.parametrize("package", ["imgwire", "transform"])
def test_each_module_has_its_test_file(repo_root: Path, package: str) -> None:
    expected = {f"test_{name}.py" for name in modules(repo_root / package)}
    there = {path.name for path in (repo_root / "tests" / package).rglob("test_*.py")}
    assert expected, f"no modules found in {package}"
    assert not expected - there
