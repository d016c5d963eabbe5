"""A guest of the other ISA as a node that programs go to and come from: an aarch64 one, beside this machine, x86-64.

    there = There(vm)
    await there.open()
    await there.install(pair, "crew")  # both executables, where they are here
    await there.bring(node, pid, criu, pair)  # from a node here
    await there.bring_back(pid, cache, pair)  # to a cache here

It has a cache that runs restores, and `imgproxy` loaded, for the way back: in an emulated machine programs of the
project take long to start.
"""

import io
import json
import tarfile
from pathlib import Path

from tests.nodes import Ended, Node, Program, migrate
from tests.testbed.guest import Command, Guest
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.machine import HOST

PORT = 7000


class There:
    """The guest."""

    def __init__(self, vm: Guest) -> None:
        self.vm = vm
        self.address = ""  #: of its cache, for `--to` here
        self.home = HOST  #: where this machine's caches are, seen from there
        self._cache: Command | None = None
        self._source: Command | None = None
        self._runs = 0

    async def open(self, *options: object) -> None:
        """Start what it has; `options` are the cache's."""
        assert (await self.vm.run("mkdir", "-m", "700", "/run/there")).code == 0
        listen = ["--listen", f"0.0.0.0:{PORT}", "--insecure", "--allow-restore"]
        self._cache = await self.vm.start("imgcache", "-D", "/run/there", *listen, *options)
        self._source = await self.vm.start("python3", "-m", "tests.testbed.preloaded")
        await self._cache.wait_stderr('"ready"', PATIENCE)
        self.address = f"127.0.0.1:{await self.vm.forward(PORT)}"

    async def install(self, pair: Path, name: str) -> None:
        """A pair at the place that it has here, and as what runs this ISA's."""
        assert (await self.vm.run("mkdir", "-p", pair / "bin")).code == 0
        for isa in ("x86-64", "aarch64"):
            await self.vm.put(pair / f"bin/{name}_{isa}", f"{pair}/bin/{name}_{isa}", 0o755)
        assert (await self.vm.run("cp", pair / f"bin/{name}_aarch64", pair / name)).code == 0

    async def bring(self, node: Node, pid: int, criu: Path, pair: Path, *options: object) -> None:
        """`imgproxy migrate` on a node here."""
        change = ["--arch", "aarch64", "--binaries", pair, "--insecure"]
        done = await migrate(node, pid, self.address, criu, *change, *options, deadline=PATIENCE)
        assert done.code == 0, done.output

    async def bring_back(self, pid: int, cache: Program, pair: Path, *options: object) -> None:
        """`imgproxy migrate` in the guest, to a cache here."""
        done = await self.try_back(pid, cache, pair, *options)
        assert done.code == 0, done.output

    async def try_back(self, pid: int, cache: Program, pair: Path, *options: object) -> Ended:
        """The same, to whatever end."""
        assert self._source
        self._runs += 1
        words = ["migrate", str(pid), "--to", f"{self.home}:{cache.address.rpartition(':')[2]}", "--insecure"]
        words += ["--arch", "x86-64", "--binaries", str(pair), "--journal", "/run/journal", *map(str, options)]
        await self._source.wait_stderr("ready", PATIENCE)
        await self._source.write(json.dumps([words, "/run/out", "/run/err"]).encode() + b"\n")
        told = await self._source.wait_stderr(f"run {self._runs} ended: ", PATIENCE)
        code = int(told.rstrip().rpartition(": ")[2])
        return Ended(code, (await self.vm.get("/run/out")).decode(), (await self.vm.get("/run/err")).decode())

    def logged(self, session: str) -> list[str]:
        """What its cache has logged of a session so far: the events."""
        assert self._cache
        lines = [json.loads(line) for line in self._cache.stderr.splitlines() if line.endswith("}")]
        return [str(line["event"]) for line in lines if line.get("session") == session]

    async def threads(self, program: Path) -> list[int]:
        """How many threads each process of a program has there."""
        script = 'for pid in $(pgrep -f "^$0"); do ls /proc/$pid/task | wc -l; done'
        return sorted(map(int, (await self.vm.run("sh", "-c", script, program)).stdout.split()))

    async def put_folder(self, folder: Path) -> None:
        """Make a folder there what it is here: an empty one, or its files."""
        with io.BytesIO() as packed:
            with tarfile.open(fileobj=packed, mode="w") as archive:
                archive.add(folder, ".")
            script = 'rm -rf "$0"; mkdir -p "$0"; tar -x -C "$0"'
            done = await self.vm.run("sh", "-c", script, folder, stdin=packed.getvalue())
        assert done.code == 0, done.output

    async def get_folder(self, folder: Path) -> None:
        """Make a folder here what it is there."""
        done = await (command := await self.vm.start("tar", "-c", "-C", folder, ".")).wait()
        assert done.code == 0, done.stderr
        for old in folder.iterdir():
            old.unlink()
        with io.BytesIO(command.output) as packed, tarfile.open(fileobj=packed) as archive:
            archive.extractall(folder, filter="data")
