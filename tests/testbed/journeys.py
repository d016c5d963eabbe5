"""Programs that change ISA at random moments while they work, there and back and there again; and what they have done
in the end, which must be what they do when they never move.

A journey is one run of a job, from its start here to its end in either place. Its legs are drawn from a seed. For each
it is stopped, as by a person: most jobs would be over before a migration has begun. Its disk goes along while it is
frozen, by an action script, so that the files are as the process knows them.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from imgproxy.trap import status_of
from tests.nodes import Ended, Node, Nodes, Program, start_cache, start_migrate, until
from tests.testbed.disk import Disk
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.there import There
from tests.toolchain.pairs import run

#: The part of its time within which a job leaves for the last time, and seconds of a stay there, where it is about
#: ten times slower.
LATEST, STAY = 0.9, 1.0
MOST_LEGS = 4
WRITTEN = "written"
#: Waits until a process has ended.
ENDED = 'while kill -0 "$0" 2>/dev/null; do sleep 0.1; done'
#: The action script, in both places; and what waits there for the process to be frozen.
FROZEN = """#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
touch "$0.frozen"
until [ -e "$0.copied" ]; do sleep 0.1; done
rm "$0.frozen" "$0.copied"
"""
IS_FROZEN = 'until [ -e "$0.frozen" ]; do sleep 0.1; done'


@dataclass
class Job:
    """A program of a pair, and what it is run with in a folder of its own: all files there are what it has done."""

    pair: Path
    name: str
    words: tuple[str, ...]
    stdin: Path = Path("/dev/null")
    options: tuple[str, ...] = ()  #: of CRIU
    code: int = 0  #: what it ends with
    files: tuple[Path, ...] = ()  #: that it finds in its folder
    stdout: str = WRITTEN
    expected: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0

    def run_unmoved(self, folder: Path) -> None:
        """See what it does here, and how long that takes."""
        self.furnish(folder)
        begun = time.monotonic()
        done = run("sh", "-c", self.script, self.pair / self.name, self.stdin, *self.words, directory=folder)
        self.seconds = time.monotonic() - begun
        assert done.returncode == self.code, done
        self.expected = contents(folder)
        assert self.expected[WRITTEN]

    def furnish(self, folder: Path) -> None:
        """Put into its folder what it needs there."""
        for file in self.files:
            shutil.copy(file, folder)

    @property
    def script(self) -> str:
        """For a shell: the program is $0, its input $1. Its libc would map the file of the time zone."""
        return f'input=$1; shift; export TZ=UTC0; exec "$0" "$@" <"$input" >{self.stdout}'


def contents(folder: Path) -> dict[str, bytes]:
    """All that a job has done."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Journeys:
    """Journeys between this machine and a guest. `changes`: of ISA, so far, by direction."""

    def __init__(self, there: There, nodes: Nodes, criu: Path, new_folder: Callable[[], Path]) -> None:
        self.there, self.nodes, self.criu, self._new_folder = there, nodes, criu, new_folder
        self.changes = {"there": 0, "back": 0}
        self._made: list[tuple[Node, Program]] = []
        self.frozen = new_folder() / "frozen"

    async def open(self) -> None:
        """A node to start from, and one to come back to; the action script in both places."""
        self.frozen.write_text(FROZEN)
        self.frozen.chmod(0o755)
        assert (await self.there.vm.run("mkdir", "-p", self.frozen.parent)).code == 0
        await self.there.vm.put(self.frozen, str(self.frozen), 0o755)
        for _ in range(2):
            node = await self.nodes.make()
            self._made.append((node, await start_cache(node, "--allow-restore", criu=self.criu)))

    async def go(self, job: Job, draw: random.Random, legs: int = 0, latest: float = LATEST) -> None:
        """One journey, of so many legs, or up to MOST_LEGS; AssertionError if a leg fails, or not all was done in the
        end. `latest`: the part of its time within which it leaves for the last time."""
        legs = legs or draw.randint(1, MOST_LEGS)
        journey = _Journey(self, job, self._new_folder())
        await journey.start()
        for leg in range(legs):
            here = leg % 2 == 0
            await trio.sleep(draw.uniform(0, latest * job.seconds / ((legs + 1) // 2) if here else STAY))
            if not await (journey.leave() if here else journey.come_back()):
                break  # it was done before
        done = await journey.end()
        assert done == job.expected, f"{job.words}, {journey.told}: {differences(done, job.expected)}"

    def count(self, direction: str, words: tuple[str, ...], seconds: float) -> None:
        """One more change of ISA, and how long it took."""
        self.changes[direction] += 1
        print(f"{' '.join(words[:2])} {direction}: {seconds:.1f} s", flush=True)


def differences(done: dict[str, bytes], expected: dict[str, bytes]) -> str:
    """For a report: the files that differ, and how."""
    wrong = [name for name in done.keys() | expected.keys() if done.get(name) != expected.get(name)]
    return "; ".join(f"{name}: {done.get(name, b'')[-500:]!r}" for name in wrong)


class _Journey:
    """One of them. It is at `node`, or in the guest."""

    def __init__(self, journeys: Journeys, job: Job, folder: Path) -> None:
        self._all, self._job, self._folder = journeys, job, folder
        self._there = journeys.there
        self._away = False
        self._disk = Disk(folder, self._there.vm)
        self._node, self._cache = journeys._made[0]
        self._pid = 0
        self.told: list[str] = []

    async def start(self) -> None:
        """Run it here."""
        job = self._job
        await self._disk.attach(self._node, [])
        job.furnish(self._node.path(self._folder))
        words = ["sh", "-c", f"cd {self._folder}; {job.script}", job.pair / job.name, job.stdin, *job.words]
        self._pid = await self._all.nodes.start_quiet(self._node, *words)
        written = self._node.path(self._folder) / WRITTEN
        await until(lambda: self._runs() or (written.exists() and written.stat().st_size > 0), "it to start")

    def _inside(self) -> list[int]:
        """It, by its pid here."""
        job = self._job
        words = " ".join([str(job.pair / job.name), *job.words])
        return [pid for pid, command in self._node.processes().items() if command.startswith(words)]

    def _runs(self) -> bool:
        return bool(self._inside())

    async def leave(self) -> bool:
        """To the guest; False if it has ended before."""
        if not await self._stopped_here():
            return False
        begun = time.monotonic()
        change = ["--arch", "aarch64", "--binaries", self._job.pair, "--insecure", *self._options]
        proxy = start_migrate(self._node, self._pid, self._there.address, self._all.criu, *change)
        frozen = self._all.frozen
        await until(lambda: proxy.dead or frozen.with_suffix(".frozen").exists(), "it to be frozen", PATIENCE)
        await self._disk.attach_there(self._disk.files(self._node))
        frozen.with_suffix(".copied").touch()
        done = await proxy.ended(PATIENCE)
        assert done.code == 0, f"{self._job.words}, {self.told}: {done.output}"
        self._away = True
        await self._disk.detach(self._node)
        self._arrived("there", begun)
        await self._there.vm.run("kill", "-CONT", self._pid)
        return True

    @property
    def _options(self) -> list[object]:
        return ["--action-script", self._all.frozen, *self._job.options]

    async def _stopped_here(self) -> bool:
        for pid in self._inside():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                await until(lambda: all(status_of(pid)["State"][0] in "TX" for pid in self._inside()), "it to stop")
        return self._runs()

    async def come_back(self) -> bool:
        """To the other node here; False if it has ended before."""
        if (await self._there.vm.run("kill", "-STOP", self._pid)).code:
            return False
        begun = time.monotonic()
        node, cache = self._all._made[1]
        done = await self._with_disk(node, cache)
        assert done.code == 0, f"{self._job.words}, {self.told}: {done.output}"
        self._away = False
        await self._disk.detach_there()
        self._node, self._cache = node, cache
        self._arrived("back", begun)
        for pid in self._inside():
            os.kill(pid, signal.SIGCONT)
        return True

    async def _with_disk(self, node: Node, cache: Program) -> Ended:
        """Back, with the files as they are when it is frozen there."""
        there, frozen = self._there, self._all.frozen
        async with trio.open_nursery() as nursery:

            async def take() -> None:
                await there.vm.run("sh", "-c", IS_FROZEN, frozen, deadline=PATIENCE)
                await self._disk.attach(node, await self._disk.files_there())
                await there.vm.run("touch", f"{frozen}.copied")

            nursery.start_soon(take)
            done = await there.try_back(self._pid, cache, self._job.pair, *self._options)
            nursery.cancel_scope.cancel()
        return done

    def _arrived(self, direction: str, begun: float) -> None:
        """What was stopped arrives stopped."""
        self._all.count(direction, self._job.words, time.monotonic() - begun)
        self.told.append(direction)

    async def end(self) -> dict[str, bytes]:
        """Let it go on to its end; what it has done."""
        if self._away:
            await self._there.vm.run("sh", "-c", ENDED, self._pid, deadline=PATIENCE)
            return {file.name: file.data for file in await self._disk.files_there()}
        await until(lambda: not self._runs(), "it to end", PATIENCE)
        return contents(self._node.path(self._folder))
