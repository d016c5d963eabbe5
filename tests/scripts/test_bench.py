"""scripts/bench runs each benchmark and writes its numbers down. What the numbers are is not for a test: that is the
benchmark's own business, on a quiet machine.
"""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.benchmarks import abroad, isa, near_live
from scripts.benchmarks.__main__ import BENCHMARKS, BY_NAME, parse, size_of
from scripts.benchmarks.remote import judged
from scripts.benchmarks.remote_pairs import held
from scripts.benchmarks.report import MIB
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Measurement, Series

pytestmark = pytest.mark.t2

DEADLINE = 120  # seconds; alone on a machine all of --quick takes a quarter of that


def run_bench(root: Path, *options: str, deadline: float = DEADLINE) -> "subprocess.CompletedProcess[str]":
    command = [str(root / "scripts/bench"), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=deadline, check=False)


def results(root: Path, file: Path, *options: str, deadline: float = DEADLINE) -> dict[str, Any]:
    finished = run_bench(root, "--quick", "--json", str(file), *options, deadline=deadline)
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


def test_remote_is_refused_without_an_original_criu(repo_root: Path) -> None:
    finished = run_bench(repo_root, "remote")
    assert finished.returncode == 2
    assert finished.stderr.splitlines()[-1].startswith("bench: remote needs --original PATH, a CRIU 3.14 ")
    assert "usage" not in finished.stderr, "it is one line"


@pytest.mark.parametrize("other", ["/bin/true", "/nowhere/criu", "/etc/passwd"])
def test_an_original_without_remote_is_refused(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        parse(["--original", other])
    assert refused.value.code == 2
    assert capsys.readouterr().err.startswith(f"bench: --original {other}: not a CRIU 3.14 ")


def test_remote_is_among_all_where_there_is_an_original(tmp_path: Path) -> None:
    original = tmp_path / "criu"
    original.write_text("#!/bin/sh\necho --remote\n")
    original.chmod(0o755)
    everything = [name for name in BENCHMARKS if name not in BY_NAME]
    assert parse(["--original", str(original)]).names == everything
    assert parse([]).names == [name for name in everything if name != "remote"]


def test_sizes() -> None:
    usual, given, quick = parse([]), parse(["--size", "64MiB"]), parse(["--quick"])
    assert [size_of("rate", one) // MIB for one in (usual, given, quick)] == [1024, 64, 4]
    assert [size_of("remote", one) // MIB for one in (usual, given, quick)] == [512, 64, 4]
    assert [size_of("freeze", one) // MIB for one in (usual, given, quick)] == [1, 1, 1]


def moved(name: str, *trials: tuple[float, int, int, int]) -> Series:
    """Trials of 100 MiB: seconds until restored; MiB of the proxy, the cache, its memfds. When ready each has 10."""
    found = [
        {"restored": seconds}
        | {"proxy_start": 10 * MIB, "proxy_peak": proxy * MIB, "proxy_memfds": 0}
        | {"cache_start": 10 * MIB, "cache_peak": cache * MIB, "cache_memfds": memfds * MIB}
        for seconds, proxy, cache, memfds in trials
    ]
    return Series(name, Workload(100 * MIB), [Measurement(9.0, 9.0, one) for one in found])


def test_figures_of_remote() -> None:
    original = moved("theirs", (4.0, 111, 112, 0), (5.0, 111, 112, 0), (9.0, 113, 112, 0))
    fast = moved("fast", (1.0, 12, 40, 101), (2.0, 30, 20, 101), (8.0, 11, 20, 101))
    slow = moved("slow", (2.5, 74, 63, 101), (2.6, 75, 64, 101), (2.7, 74, 63, 101))
    report = judged(Workload(100 * MIB), [original, fast, slow])
    assert report.rows == [
        ("theirs", "5.000 s", "4.000 s", "9.000 s", "20", "1.00"),
        ("fast", "2.000 s", "1.000 s", "8.000 s", "50", "2.50"),
        ("slow", "2.600 s", "2.500 s", "2.700 s", "38", "1.92"),
    ]
    assert [(one.what.partition(":")[0], round(one.value, 2), one.reached) for one in report.targets] == [
        ("fast", 2.5, True),
        ("fast", 20.0, True),  # its proxy at 30 MiB, 10 of them at start
        ("fast", 41.0, True),  # its cache at 40 MiB and 101 MiB of images
        ("slow", 1.92, False),
        ("slow", 65.0, False),
        ("slow", 65.0, False),
    ]
    assert [(one.limit, one.at_most) for one in report.targets[:3]] == [(2.0, False), (64.0, True), (64.0, True)]
    assert report.notes[0] == (
        "theirs: proxy 113.0 MiB resident (10.0 when ready), cache 112.0 MiB (10.0) and 0.0 MiB in memfds"
    )


def test_memory_in_memfds_is_seen() -> None:
    _, before = held(os.getpid())
    memfd = os.memfd_create("bench")
    try:
        os.write(memfd, bytes(MIB))
        peak, after = held(os.getpid())
    finally:
        os.close(memfd)
    assert after - before == MIB
    assert peak > MIB


def test_a_program_that_has_ended_holds_nothing() -> None:
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert held(ended.pid) == (0, 0), "a zombie"
    assert held(ended.pid) == (0, 0)


def migrated(frozen: float, restore: float, *rounds: int) -> dict[str, Any]:
    """A summary; its rounds in MiB."""
    return {"frozen": frozen, "rounds": [one * MIB for one in rounds], "phases": {"restore": restore}}


def test_figures_of_near_live() -> None:
    case = near_live.Case("never", "loopback")
    case.moves["rounds"] = [migrated(2.0, 1.5, 100, 20, 4), migrated(1.0, 0.5, 100, 5)]
    case.moves["rounds, lazy"] = [migrated(0.75, 0.25, 100, 4), migrated(0.25, 0.25, 100, 5)]
    case.moves["one dump"] = [migrated(8.0, 6.0, 100), migrated(10.0, 7.0, 100)]
    report = near_live.judged(Workload(100 * MIB), [case])
    assert report.rows == [
        ("loopback, huge pages never", "", "", "", "", "", ""),
        ("  rounds", "1.5", "100 MiB", "4 MiB", "4.5%", "1.50 s", "0.17"),
        ("  rounds, lazy", "1", "100 MiB", "4 MiB", "4.5%", "0.50 s", "0.06"),
        ("  one dump", "0", "100 MiB", "100 MiB", "", "9.00 s", "1.00"),
        ("    restore", "", "", "", "", "1.00 s, 0.25 s", "of 6.50 s"),
    ]
    assert [(round(one.value, 3), one.reached) for one in report.targets] == [
        (0.045, True),
        (0.167, True),
        (0.056, True),
    ]


def test_figures_of_abroad() -> None:
    phases = {"dump and send": 0.1, "last bytes": 0.2, "restore": 2.0, "resume there": 0.3}
    told = [{"frozen": frozen, "phases": phases} for frozen in (2.5, 3.0, 2.75)]
    ways = [abroad.Way("x86-64", [], [4.0, 3.0, 5.0], told), abroad.Way("aarch64", ["--arch"], [1.0], told[:1])]
    report = abroad.judged(Workload(16 * MIB), ways)
    assert report.rows == [
        ("to x86-64", "4.00 s", "2.75 s", "0.10 s", "0.20 s", "2.00 s", "0.30 s"),
        ("to aarch64 --arch", "1.00 s", "2.50 s", "0.10 s", "0.20 s", "2.00 s", "0.30 s"),
    ]


def test_figures_of_isa() -> None:
    usual = isa.Case(100, 64 * MIB, changed=[0.8, 1.0], plain=[0.6, 1.0], added=[0.010, 0.014])
    deep = isa.Case(10_000, 64 * MIB, changed=[1.0], plain=[1.0], added=[0.6])
    large = isa.Case(100, 4096 * MIB, changed=[8.0, 9.0, 10.0], plain=[8.0, 9.0, 9.0], added=[0.018])
    report = isa.judged([usual, deep, large])
    assert report.rows == [
        ("4 threads of 100 frames, 64 MiB", "12.0 ms", "0.90 s", "0.80 s", "0.88"),
        ("4 threads of 10000 frames, 64 MiB", "600.0 ms", "1.00 s", "1.00 s", "1.00"),
        ("4 threads of 100 frames, 4096 MiB", "18.0 ms", "9.00 s", "9.00 s", "1.00"),
    ]
    assert [(round(one.value, 3), one.reached) for one in report.targets] == [
        (0.012, True),
        (0.5, True),
        (1.5, False),
        (1.0, True),
    ]
