"""Programs that change ISA at random moments while they work, there and back and there again; and what they have done
in the end, which must be what they do when they never move.

A journey is one run of a job, from its start here to its end in either place. Its legs are drawn from a seed. For each
it is stopped, as by a person: most jobs would be over before a migration has begun. Its files go along, as if on a disk
that both places have.
"""

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from imgproxy.trap import status_of
from tests.nodes import Node, Nodes, Program, migrate, start_cache, until
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.there import There
from tests.toolchain.pairs import output

#: The part of its time within which a job is moved for the last time, and seconds of a stay there, where it is about
#: ten times slower.
LATEST, STAY = 0.9, 1.0
MOST_LEGS = 4
WRITTEN = "written"
#: Waits until a process has ended.
ENDED = 'while kill -0 "$0" 2>/dev/null; do sleep 0.1; done'


@dataclass
class Job:
    """A program of a pair, and what it is run with in a folder of its own: all files there are what it has done."""

    pair: Path
    name: str
    words: tuple[str, ...]
    stdin: Path = Path("/dev/null")
    options: tuple[str, ...] = ()  #: of CRIU
    expected: dict[str, bytes] = field(default_factory=dict)
    seconds: float = 0.0

    def run_unmoved(self, folder: Path) -> None:
        """See what it does here, and how long that takes."""
        begun = time.monotonic()
        output("sh", "-c", self.script, self.pair / self.name, self.stdin, *self.words, directory=folder)
        self.seconds = time.monotonic() - begun
        self.expected = contents(folder)
        assert self.expected[WRITTEN]

    @property
    def script(self) -> str:
        """For a shell: the program is $0, its input $1."""
        return f'input=$1; shift; exec "$0" "$@" <"$input" >{WRITTEN}'


def contents(folder: Path) -> dict[str, bytes]:
    """All that a job has done."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Journeys:
    """Journeys between this machine and a guest. `changes`: of ISA, so far, by direction."""

    def __init__(self, there: There, nodes: Nodes, criu: Path, new_folder: Callable[[], Path]) -> None:
        self.there, self.nodes, self.criu, self._new_folder = there, nodes, criu, new_folder
        self.changes = {"there": 0, "back": 0}
        self._made: list[tuple[Node, Program]] = []

    async def open(self) -> None:
        """A node to start from, and one to come back to."""
        for _ in range(2):
            node = await self.nodes.make()
            self._made.append((node, await start_cache(node, "--allow-restore", criu=self.criu)))

    async def go(self, job: Job, draw: random.Random) -> None:
        """One journey, of up to MOST_LEGS legs; AssertionError if a leg fails, or not all was done in the end."""
        legs = draw.randint(1, MOST_LEGS)
        journey = _Journey(self, job, self._new_folder())
        await journey.start()
        for leg in range(legs):
            here = leg % 2 == 0
            await trio.sleep(draw.uniform(0, LATEST * job.seconds / ((legs + 1) // 2) if here else STAY))
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
        self._node, self._cache = journeys._made[0]
        self._pid = 0
        self.told: list[str] = []

    async def start(self) -> None:
        """Run it here."""
        job = self._job
        words = ["sh", "-c", f"cd {self._folder}; {job.script}", job.pair / job.name, job.stdin, *job.words]
        self._pid = await self._all.nodes.start_quiet(self._node, *words)
        written = self._folder / WRITTEN
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
        await self._there.put_folder(self._folder)
        begun = time.monotonic()
        change = ["--arch", "aarch64", "--binaries", self._job.pair, "--insecure"]
        done = await migrate(
            self._node, self._pid, self._there.address, self.criu, *change, *self._job.options, deadline=PATIENCE
        )
        assert done.code == 0, f"{self._job.words}, {self.told}: {done.output}"
        self._away = True
        self._arrived("there", begun)
        await self._there.vm.run("kill", "-CONT", self._pid)
        return True

    @property
    def criu(self) -> Path:
        return self._all.criu

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
        await self._there.get_folder(self._folder)
        begun = time.monotonic()
        node, cache = self._all._made[1]
        done = await self._there.try_back(self._pid, cache, self._job.pair, *self._job.options)
        assert done.code == 0, f"{self._job.words}, {self.told}: {done.output}"
        self._away = False
        self._node, self._cache = node, cache
        self._arrived("back", begun)
        for pid in self._inside():
            os.kill(pid, signal.SIGCONT)
        return True

    def _arrived(self, direction: str, begun: float) -> None:
        """What was stopped arrives stopped."""
        self._all.count(direction, self._job.words, time.monotonic() - begun)
        self.told.append(direction)

    async def end(self) -> dict[str, bytes]:
        """Let it go on to its end; what it has done."""
        if self._away:
            await self._there.vm.run("sh", "-c", ENDED, self._pid, deadline=PATIENCE)
            await self._there.get_folder(self._folder)
        else:
            await until(lambda: not self._runs(), "it to end", PATIENCE)
        return contents(self._folder)
