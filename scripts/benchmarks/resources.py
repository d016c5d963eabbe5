"""What proxy and cache use: CPU for each GB, memory for images of any size, and whether pages are copied through them.

CPU and memory are those of each process itself, from when it was ready until the process has moved. Over loopback the
kernel does the receiver's part of TCP in the sender's name; so the proxy's own CPU is seen over a UNIX socket, where
there is none of that. The cache's images are in memfds, which count in no process's resident memory: they are added to
it. The bytes that go through each system call are seen in a trial of its own, under strace.
"""

import re
from collections import Counter
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from scripts.benchmarks.contenders import ByHand, Move, Trip
from scripts.benchmarks.nodes import Program, Usage, status_bytes
from scripts.benchmarks.report import MIB, Report, Target
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Setting, measure

SIZES = (64 * MIB, 256 * MIB, 1024 * MIB, 4096 * MIB)
TRACED_SIZE = 256 * MIB
QUICK_SIZE = 4 * MIB

CPU_PER_GB = 0.3
PROXY_GROWTH = 64 * MIB
CACHE_OVER_IMAGE = 1.10
#: Of the pages' bytes, how many may pass through a program's memory.
COPIED = 0.01

#: Seconds between two looks at the cache's memory.
LOOK = 0.02

SPLICING = ("splice", "tee", "vmsplice", "sendfile", "copy_file_range")
COPYING = ("read", "write", "pread64", "pwrite64", "readv", "writev", "recvfrom", "recvmsg", "sendto", "sendmsg")
_RETURNED = re.compile(r"^\d+ +(\w+)\(.* = (\d+)(?: <|$)|^\d+ +<\.\.\. (\w+) resumed>.* = (\d+)$")


async def resources(setting: Setting, _: Workload) -> Report:
    """Measure at each size, then trace."""
    columns = ("memory of the process", "proxy CPU s/GB", "cache CPU s/GB", "proxy growth", "cache growth", "of image")
    report = Report("resources: plain, TCP over loopback", columns)
    found = [await _one_size(setting, size, report) for size in ((QUICK_SIZE,) if setting.quick else SIZES)]
    large = [one for one in found if one["size"] >= 1024 * MIB] or found
    unix = await _one_size(setting, int(large[-1]["size"]), report, unix=True)
    report.targets = [
        Target("proxy, CPU seconds for each GB over a UNIX socket", unix["proxy_cpu"], CPU_PER_GB),
        Target("proxy, MiB above start", max(one["proxy_growth"] for one in found) / MIB, PROXY_GROWTH / MIB),
        Target("cache, times the image", max(one["cache_over_image"] for one in large), CACHE_OVER_IMAGE),
    ]
    report.raw["sizes"] = found
    await _trace(setting, report)
    return report


async def _one_size(setting: Setting, size: int, report: Report, *, unix: bool = False) -> dict[str, float]:
    contender = ByHand(unix=unix)
    peak = Counter[str]()
    one = await measure(setting, Workload(size), contender, around=partial(_watching, contender, peak))
    cache, proxy = peak_usage(contender.cache, peak), contender.proxies[0].used()
    found = {
        "size": size,
        "seconds": one.seconds,
        "proxy_cpu": proxy.cpu / (size / 1e9),
        "cache_cpu": cache.cpu / (size / 1e9),
        "proxy_growth": proxy.peak,
        "cache_growth": cache.peak,
        "cache_over_image": cache.peak / size,
    }
    growth = (f"{proxy.peak / MIB:.1f} MiB", f"{cache.peak / MIB:.1f} MiB", f"{cache.peak / size:.3f}")
    link = ", UNIX socket" if unix else ""
    report.rows.append((f"{size // MIB} MiB{link}", f"{found['proxy_cpu']:.3f}", f"{found['cache_cpu']:.3f}", *growth))
    setting.say(f"resources at {size // MIB} MiB")
    return found


def peak_usage(cache: Program | None, peak: Counter[str]) -> Usage:
    """The cache's CPU, and the most that it held: its own memory and its images'."""
    assert cache is not None
    return Usage(peak["cpu"] / 1e6, peak["memory"])


async def _watching(contender: ByHand, peak: Counter[str], _: Trip, move: Move) -> None:
    """Move, and note the most that the cache holds meanwhile."""
    assert contender.cache is not None
    pid = contender.cache.pid
    start = status_bytes(pid, "VmRSS")

    async def watch() -> None:
        while True:
            peak["memory"] = max(peak["memory"], status_bytes(pid, "VmRSS") - start + memfd_bytes(pid))
            await trio.sleep(LOOK)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch)
        await move()
        peak["cpu"] = round(contender.cache.used().cpu * 1e6)
        nursery.cancel_scope.cancel()


def memfd_bytes(pid: int) -> int:
    """What the memfds of a process hold."""
    blocks = {}
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            if str(descriptor.readlink()).startswith("/memfd:"):
                status = descriptor.stat()
                blocks[status.st_ino] = status.st_blocks * 512
    return sum(blocks.values())


async def _trace(setting: Setting, report: Report) -> None:
    size = QUICK_SIZE if setting.quick else TRACED_SIZE
    calls = f"trace={','.join((*SPLICING, *COPYING))}"
    contender = ByHand(
        tracer=lambda log: ("strace", "-f", "-qq", "-s", "0", "-e", calls, "-e", "signal=none", "-o", str(log))
    )
    traces: dict[str, Counter[str]] = {}

    async def read_traces(trip: Trip, move: Move) -> None:
        before = {name: bytes_by_call(trip.directory / where) for name, where in _TRACES.items()}
        await move()
        for name, where in _TRACES.items():
            traces[name] = bytes_by_call(trip.directory / where) - before[name]

    await measure(setting, Workload(size), contender, around=read_traces)
    for name, counted in traces.items():
        copied = sum(counted[call] for call in COPYING)
        spliced = sum(counted[call] for call in SPLICING)
        report.notes.append(
            f"{name}, {size // MIB} MiB: {spliced / MIB:.1f} MiB through splice and the like, "
            f"{copied / MIB:.2f} MiB through read, write, send and recv"
        )
        report.targets.append(Target(f"{name}, part of the pages copied through it", copied / size, COPIED))
    report.raw["bytes_by_call"] = {name: dict(counted) for name, counted in traces.items()}


_TRACES = {"proxy": "proxy0/trace", "cache": "cache/trace"}


def bytes_by_call(trace: Path) -> Counter[str]:
    """Sum what each system call returned, over all lines of a trace of strace's."""
    counted = Counter[str]()
    for line in trace.read_text(errors="replace").splitlines():
        if found := _RETURNED.match(line):
            counted[found[1] or found[3]] += int(found[2] or found[4])
    return counted
