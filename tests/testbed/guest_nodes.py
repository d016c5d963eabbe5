"""Two nodes within one guest, so that a process can go from one to the other and back: a boot costs more than a move.

    b, c = await open_nodes(vm)
    pid = await b.start_quiet("sleep", "1000")
    done = await b.migrate(pid, c, ["--rounds", "2"])

Each has pids of its own, a cache that runs restores, and `imgproxy` loaded once for all its runs. A process keeps its
pid, which must be free where it goes: each node hands out pids of a range of its own.
"""

import json
from collections.abc import Sequence

import trio

from tests.nodes import Ended
from tests.testbed.guest import Command, Guest

#: Seconds for a program of the project; alone it takes 10 to start, and more where others work, too.
PATIENCE = 900.0


class GuestNode:
    """Pids, a cache, and a source of migrations. `listen`: options that say where and how, the address first."""

    def __init__(self, vm: Guest, name: str, first_pid: int, listen: Sequence[str]) -> None:
        self.vm, self.name = vm, name
        self.address, self.tls = listen[0], listen[1:]
        self._first_pid = first_pid
        self._enter: list[str] = []
        self._source: Command | None = None
        self._runs = 0

    async def open(self) -> None:
        """Start all that it has."""
        first = self._first_pid
        # The shell buries what is orphaned there.
        stay = f"echo {first} >/proc/sys/kernel/ns_last_pid; echo ready >&2; sleep {first} & wait"
        shell = await self.vm.start("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", stay)
        await shell.wait_stderr("ready")
        inside = (await self.vm.run("pgrep", "-f", f"^sleep {first}$")).stdout.strip()
        self._enter = ["nsenter", "-t", inside, "-p", "-m"]
        directory = f"/run/{self.name}"
        assert (await self.vm.run("mkdir", "-m", "700", directory)).code == 0
        cache = await self.start("imgcache", "-D", directory, "--listen", self.address, *self.tls, "--allow-restore")
        self._source = await self.start("python3", "-m", "tests.testbed.preloaded")
        await cache.wait_stderr('"ready"', PATIENCE)
        await self._source.wait_stderr("ready", PATIENCE)

    async def start(self, *words: object) -> Command:
        """Start a program on it."""
        return await self.vm.start(*self._enter, *words)

    async def start_quiet(self, *words: object) -> Command:
        """Start a program as CRIU likes it, in a session of its own, on /dev/null. Below a shell that waits for it:
        nsenter(1) would stop with a child that is stopped, and not bury it when it is killed."""
        quiet = 'setsid "$@" </dev/null >/dev/null 2>&1 & wait'
        return await self.start("sh", "-c", quiet, "sh", *words)

    async def run(self, *words: object) -> Ended:
        """Run a program on it."""
        return await self.vm.run(*self._enter, *words, deadline=PATIENCE)

    async def migrate(self, pid: int, to: "GuestNode", options: Sequence[str]) -> Ended:
        """`imgproxy migrate --json`, to its end."""
        assert self._source
        self._runs += 1
        out, err = (f"/run/{self.name}/{self._runs}.{kind}" for kind in ("out", "err"))
        where = ["--to", to.address, *to.tls, "--journal", f"/run/{self.name}/journal", "--json"]
        await self._source.write(json.dumps([["migrate", str(pid), *where, *options], out, err]).encode() + b"\n")
        told = await self._source.wait_stderr(f"run {self._runs} ended: ", PATIENCE)
        code = int(told.rpartition(": ")[2])
        return Ended(code, (await self.vm.get(out)).decode(), (await self.vm.get(err)).decode())


async def open_nodes(vm: Guest, tls: Sequence[str] = ()) -> tuple[GuestNode, GuestNode]:
    """Two of them; `tls` is what the second listens with, and who goes there."""
    b = GuestNode(vm, "b", 10000, ["127.0.0.1:7000"])
    c = GuestNode(vm, "c", 20000, ["127.0.0.1:7001", *tls])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(b.open)
        nursery.start_soon(c.open)
    return b, c
