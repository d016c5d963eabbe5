"""scripts/bench runs each benchmark and writes its numbers down. What the numbers are is not for a test: that is the
benchmark's own business, on a quiet machine.
"""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.t2

DEADLINE = 120  # seconds; alone on a machine all of --quick takes a quarter of that


def run_bench(root: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [str(root / "scripts/bench"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)


def results(root: Path, file: Path, *options: str) -> dict[str, Any]:
    finished = run_bench(root, "--quick", "--json", str(file), *options)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    found = json.loads(file.read_text())
    assert found["machine"]["criu"]
    benchmarks: dict[str, Any] = found["benchmarks"]
    assert list(benchmarks) == [name for name in options if not name.startswith("-")]
    return benchmarks


def names(series: list[dict[str, Any]]) -> list[str]:
    """The contenders' names, each with a trial that took its time."""
    for one in series:
        assert [trial["seconds"] >= trial["frozen"] > 0 for trial in one["trials"]] == [True]
    return [one["name"] for one in series]


def test_contenders_are_compared(repo_root: Path, tmp_path: Path) -> None:
    found = results(repo_root, tmp_path / "numbers", "rate", "tls", "compress", "freeze")
    rate = found["rate"]
    assert names(rate["series"]) == [
        "imgproxy",
        "imgproxy migrate",
        "criu, tmpfs directory",
        "criu, tar over socat",
        "the same, on tmpfs",
    ]
    assert [target["limit"] for target in rate["targets"]] == [1.15, 1.15, 3.0]
    assert names(found["tls"]["series"]) == ["plain", "mutual TLS"]
    assert names(found["compress"]["series"]) == names(found["compress"]["loopback"]) == ["off", "auto"]
    assert names(found["freeze"]["series"]) == ["imgproxy migrate", "criu, tmpfs directory"]
    assert "restore" in found["freeze"]["phases"]


def test_resources_are_seen(repo_root: Path, tmp_path: Path) -> None:
    resources = results(repo_root, tmp_path / "numbers", "resources")["resources"]
    (one,) = resources["sizes"]
    assert one["cache_growth"] > one["size"], "the cache held the images"
    assert one["proxy_cpu"] > 0
    for program in ("proxy", "cache"):
        assert resources["bytes_by_call"][program]["splice"] > one["size"]


def test_growth_is_measured(repo_root: Path, tmp_path: Path) -> None:
    axes = results(repo_root, tmp_path / "numbers", "scale")["scale"]["axes"]
    assert {name: list(axis["seconds"]) for name, axis in axes.items()} == {
        "size": ["2", "4"],
        "tree": ["1", "4"],
        "sessions": ["1", "2"],
    }


def test_an_unknown_benchmark_is_named(repo_root: Path) -> None:
    finished = run_bench(repo_root, "speed")
    assert finished.returncode == 2
    assert "speed: not one of rate, resources" in finished.stderr
