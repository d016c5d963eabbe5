"""Near-live migration where the kernel tracks changes: real pre-dumps, whose pages are not sent again."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration import shared_counter
from tests.programs import Programs
from tests.testbed.guest import Guest, guest
from tests.testbed.test_guests import CACHE, EMULATED, LISTEN, other_pids, start

pytestmark = pytest.mark.t3

SIZE = 8 << 20  #: bytes that each of two processes verifies
#: Two processes that share memory, and leave the processor to others.
SHARING = f"""
import sys
sys.path.insert(0, {str(Path(shared_counter.__file__).parent)!r})
import shared_counter
shared_counter.PAUSE = 0.1
shared_counter.main("/run/m/counters")
"""
#: A tree: two processes with memory of their own, which change 20 pages a second, and those that share memory. Huge
#: pages are off: the kernel would take 2 MiB for changed at each.
TREE = f"""
echo never >/sys/kernel/mm/transparent_hugepage/enabled
mkdir /run/m
exec setsid sh -c '
    "$0" --size {SIZE} --procs 2 --pause 200000 --report /run/m/report --history /run/m/history &
    python3 -S -c "$1" &
    wait
' "$@" </dev/null >/dev/null 2>&1
"""
#: Waits until both have reported what a grep finds.
UNTIL = 'until grep -qsE "$1" "$0"; do sleep 0.1; done'


class Tree:
    """The tree, wherever in a guest it is."""

    def __init__(self, vm: Guest) -> None:
        self.vm = vm

    async def start(self, programs: Programs) -> int:
        """Its root's pid."""
        await self.vm.start("sh", "-c", TREE, "sh", programs.memcheck, SHARING)
        await self._until("/run/m/report", "^run.*")
        await self._until("/run/m/counters", "^0*[1-9][0-9]* ")
        return int((await self.vm.run("pgrep", "-f", "^sh -c .*--procs")).stdout)

    async def _until(self, report: str, pattern: str) -> None:
        done = await self.vm.run("sh", "-c", UNTIL, report, pattern)
        assert done.code == 0, done.output

    async def verify(self) -> None:
        """It runs, once; every byte is right, and what is shared is seen by both."""
        assert (await self.vm.run("pgrep", "-c", "-r", "R,S,D", "-x", "memcheck")).stdout == "2\n"
        assert (await self.vm.run("pgrep", "-c", "-r", "R,S,D", "-f", "^python3 -S -c")).stdout == "2\n"
        before = await self._reports()
        counters = await self._counters()
        assert (await self.vm.run("pkill", "-USR1", "-x", "memcheck")).code == 0
        await self._until_demanded(before)
        assert all(new > old for old, new in zip(counters, await self._counters(), strict=True))

    async def _reports(self) -> list[dict[str, str]]:
        text = (await self.vm.get("/run/m/report")).decode()
        lines = text.splitlines()
        assert len(lines) == 2 and all(line.startswith("run ") for line in lines), text
        return [dict(word.split("=") for word in line.split()[1:]) for line in lines]

    async def _until_demanded(self, before: list[dict[str, str]]) -> None:
        wanted = [int(one["demanded"]) for one in before]
        while any(int(now["demanded"]) <= old for now, old in zip(await self._reports(), wanted, strict=True)):
            assert (await self.vm.run("sleep", "0.2")).code == 0

    async def _counters(self) -> list[int]:
        return [int(word) for word in (await self.vm.get("/run/m/counters")).split()]


def of(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    return [line for line in lines if line["event"] == event]


async def test_what_was_sent_is_not_sent_again(programs: Programs) -> None:
    async with guest("amd64") as vm:
        tree = Tree(vm)
        root = await tree.start(programs)
        cache = await start(vm, *await other_pids(vm), "imgcache", "-D", "/run/there", *LISTEN, "--allow-restore")
        command = ["imgproxy", "migrate", root, "--to", CACHE, "--rounds", 2, "--json"]
        done = await vm.run(*command, deadline=2 * EMULATED)
        assert done.code == 0, done.output + cache.stderr
        await tree.verify()
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        first, second, last = of(lines, "summary")[0]["rounds"]
        assert [one["bytes"] for one in of(lines, "round")] == [first, second]
        assert first > 2 * SIZE
        assert second < first / 4 and last < first / 4, "the rest is as the round before has it"
        assert of(lines, "summary")[0]["frozen"] > 0
