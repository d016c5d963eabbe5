"""The lock files follow pyproject.toml (if not: run scripts/lock) and leave to the machine where packages come from."""

import re
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.t0

LOCKS = ("requirements.lock", "requirements-dev.lock")


def logical_lines(lock: Path) -> list[str]:
    text = re.sub(r"^ *#.*\n", "", lock.read_text(), flags=re.MULTILINE)
    return [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[^A-Za-z0-9._-]", line.strip(), maxsplit=1)[0].lower() for line in requirements}


@pytest.mark.parametrize("lock", LOCKS)
def test_every_line_is_a_pin_with_hashes(repo_root: Path, lock: str) -> None:
    pin = re.compile(r"[a-z0-9._-]+==[^ ;]+( ; [^-]+)?( +--hash=sha256:[0-9a-f]{64})+ *")
    lines = logical_lines(repo_root / lock)
    assert lines
    assert [line for line in lines if not pin.fullmatch(line)] == []


def test_locks_hold_what_the_project_requires(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text())
    runtime = names(project["project"]["dependencies"])
    development = names(project["project"]["optional-dependencies"]["dev"]) | names(project["build-system"]["requires"])
    runtime_lock, development_lock = (set(logical_lines(repo_root / lock)) for lock in LOCKS)
    assert runtime <= names(list(runtime_lock))
    assert runtime | development <= names(list(development_lock))
    assert runtime_lock <= development_lock
