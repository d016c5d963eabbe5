"""scripts/demo does what it shows: a small process goes there and back, and nothing is left of the two nodes."""

import os
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.t2

DEADLINE = 120  # seconds; two migrations of a small process and the start of two caches take about 10


def run_demo(root: Path, temporary: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [str(root / "scripts/demo"), *options]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=DEADLINE, check=False)


def network_namespaces() -> list[str]:
    return subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_process_goes_there_and_back(repo_root: Path, node_dir: Path) -> None:
    before = network_namespaces()
    finished = run_demo(repo_root, node_dir, "--size", "8MiB")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    for journey, left, reached in (("alder → birch", "alder", "birch"), ("birch → alder", "birch", "alder")):
        shown = finished.stdout.partition(journey)[2]
        assert f"  {left:<9} process 5001 is gone" in shown
        assert f"  {reached:<9} process 5001 counts on:" in shown
    assert finished.stdout.count("copies    exactly one") == 2
    assert finished.stdout.count("memory    every byte of 8MiB is right") == 2
    assert "\x1b" not in finished.stdout, "colours are for terminals"
    assert network_namespaces() == before
    assert not list(node_dir.iterdir())


@pytest.mark.parametrize("options", [["--size", "much"], ["--size"], ["--rounds", "x"], ["--fast"]])
def test_a_wrong_option_is_named(repo_root: Path, tmp_path: Path, options: list[str]) -> None:
    finished = run_demo(repo_root, tmp_path, *options)
    assert finished.returncode == 2
    assert finished.stderr.startswith("demo: ")
    assert "usage: scripts/demo" in finished.stderr
