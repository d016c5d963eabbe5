"""A process changes ISA after pre-dumps: from a guest that tracks changes of memory, x86-64, to one on aarch64. Its
stack has not changed since the first, so it is patched in that round."""

import json
from pathlib import Path

import pytest
import trio

from tests.testbed.guest import Guest, guest
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.machine import HOST
from tests.testbed.test_isa import NAP
from tests.testbed.test_near_live import of
from tests.testbed.there import There
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, output

pytestmark = pytest.mark.t3

#: A pid that nothing has in the other guest.
PID = 20000
START = f"""
echo {PID} >/proc/sys/kernel/ns_last_pid
exec setsid "$0" "$@" </dev/null >/dev/null 2>&1
"""
#: Waits until it stays at the bottom of its frames, asleep.
DEEP = 'until pid=$(pgrep -f "^$0") && grep -q nanosleep /proc/"$pid"/wchan; do sleep 0.1; done; echo "$pid"'
#: Has it end, and shows what it wrote.
END = 'touch "$1"; while pgrep -f "^$2" >/dev/null; do sleep 0.1; done; cat "$0"'


async def install(vm: Guest, pair: Path) -> None:
    """The pair, at the place that it has here."""
    assert (await vm.run("mkdir", "-p", pair / "bin")).code == 0
    for path in (pair / "bin").iterdir():
        await vm.put(path, str(path), 0o755)
    assert (await vm.run("cp", pair / "bin/deep_x86-64", pair / "deep")).code == 0


async def test_a_stack_is_in_an_earlier_round(tmp_path: Path) -> None:
    pair, written, stop = tmp_path / "pair", tmp_path / "written", tmp_path / "stop"
    output(make_toolchain(), "-O2", PROGRAMS / "deep.c", "-o", "deep", "--layout", pair, directory=tmp_path)
    async with guest("amd64") as source, guest("arm64") as vm:
        there = There(vm)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.open)
            nursery.start_soon(there.install, pair, "deep")
            nursery.start_soon(install, source, pair)
        await source.start("sh", "-c", START, pair / "deep", 2**30, written, NAP, stop)
        pid = int((await source.run("sh", "-c", DEEP, pair / "deep")).stdout)
        address = f"{HOST}:{there.address.rpartition(':')[2]}"
        command = ["imgproxy", "migrate", pid, "--to", address, "--insecure", "--rounds", 2, "--json"]
        done = await source.run(*command, "--arch", "aarch64", "--binaries", pair, deadline=PATIENCE)
        assert done.code == 0, done.output
        assert await there.threads(pair / "deep") == [1]
        first, second, last = of([json.loads(line) for line in done.stdout.splitlines()], "summary")[0]["rounds"]
        assert max(second, last) < 0.3 * first, "the stack is not among what has changed"
        assert (await source.run("pgrep", "-f", f"^{pair}/deep")).stdout == ""
        told = (await vm.run("sh", "-c", END, written, stop, pair / "deep", deadline=PATIENCE)).stdout
    turns = int(told.split()[0])
    output(pair / "deep", turns, tmp_path / "expected", 0)
    assert told == (tmp_path / "expected").read_text()
