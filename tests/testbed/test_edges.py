"""Near-live migration with a process that shows each page of another moment: there and back, again and again, within
one guest, whose kernel tracks changes. No page may be wrong, whatever it does to its memory between two rounds.

What continuous integration runs is a sample. All of it, in a quarter of an hour to an hour:

    IMGPROXY_MOVES=100 IMGPROXY_SEED=7 scripts/test t3 -- tests/testbed/test_edges.py
"""

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import trio

from tests.nodes import Ended
from tests.programs import Programs
from tests.programs.edges import Edge, assert_right, have_verified, parse
from tests.testbed.guest import Guest, guest
from tests.testbed.guest_nodes import PATIENCE, GuestNode, open_nodes
from tests.testbed.machine import Hardware

pytestmark = pytest.mark.t3

#: Moves of all processes together, and what their rounds and links are drawn from.
MOVES = int(os.environ.get("IMGPROXY_MOVES", "8"))
SEED = int(os.environ.get("IMGPROXY_SEED", "1"))
SIZE, STILL = 1 << 20, 3 << 20
REPORT = "/run/m/report"
PAGE = 4096
#: Bytes of a process beside these: its libraries' data and tables, its small regions.
OTHERS, CHURNED = 1 << 19, 3 << 18
SHARED = f"--shared={SIZE}"


@dataclass(frozen=True)
class Kind:
    """A process: options of `edge`; `huge`: with transparent huge pages, where each page changed takes 2 MiB along."""

    options: tuple[str, ...] = ()
    procs: int = 1
    huge: bool = False

    @property
    def memory(self) -> int:
        """Bytes that a dump of everything has at most, about."""
        threads = next((int(word[10:]) for word in self.options if word.startswith("--threads=")), 1)
        own = STILL + threads * SIZE + OTHERS + (CHURNED if "--churn" in self.options else 0)
        return self.procs * own + (SIZE if SHARED in self.options else 0)

    def words(self) -> list[str]:
        """Its command's options: it changes about half of its memory during a round."""
        sizes = [f"--size={SIZE}", f"--still={STILL}", f"--procs={self.procs}"]
        return [*sizes, "--batch=3", "--pause=10000", *self.options]


KINDS = {
    "plain": Kind(),
    "threads": Kind(("--threads=3",)),
    "children": Kind(procs=3),
    "shared": Kind((SHARED,), procs=2),
    "churn": Kind(("--churn",)),
    "forks": Kind(("--forks", "--churn"), procs=2),
    "huge": Kind(("--churn",), huge=True),
    "everything": Kind(("--forks", "--churn", "--threads=2", SHARED), procs=3),
}
#: What a move's options are drawn from; all moves to one of the two nodes go by TLS.
ROUNDS = (1, 2, 3, 4, 5)
LINKS = (("--compress", "off"), ("--compress", "3"), ())
RESTORES = ((), ("--lazy",))
CERTIFICATES = "/run/certs"
TLS_FILES = (
    *("--tls-cacert", f"{CERTIFICATES}/ca.pem"),
    *("--tls-cert", f"{CERTIFICATES}/127.0.0.1.pem"),
    *("--tls-key", f"{CERTIFICATES}/127.0.0.1.key"),
)


class Moved:
    """A process that is moved, and what it says."""

    def __init__(self, vm: Guest, kind: Kind) -> None:
        self.vm, self.kind = vm, kind
        self.pid = 0

    async def start(self, programs: Programs, node: GuestNode) -> None:
        """It has its memory, and runs."""
        huge = "always" if self.kind.huge else "never"
        prepare = f"echo {huge} >/sys/kernel/mm/transparent_hugepage/enabled; mkdir -p /run/m; rm -f {REPORT}"
        assert (await self.vm.run("sh", "-c", prepare)).code == 0
        await node.start_quiet(programs.edge, *self.kind.words(), "--report", REPORT)
        self.pid = (await self._reports())[0].pid

    async def _reports(self, wanted: Callable[[list[Edge]], bool] = bool) -> list[Edge]:
        """What each process says, once it is what is wanted; to ask takes a guest long enough."""
        found: list[Edge] | None = None
        with trio.move_on_after(PATIENCE):
            while not found or len(found) != self.kind.procs or not wanted(found):
                found = parse((await self.vm.run("cat", REPORT)).stdout)
            return found
        raise AssertionError(f"not what is wanted after {PATIENCE} s: {found}")

    async def verified(self, node: GuestNode) -> list[Edge]:
        """All of its memory is right; what it says then."""
        before = await self._reports()
        done = await node.run("kill", "-USR1", self.pid)
        assert done.code == 0, f"{done.output}{(await self.vm.get(REPORT)).decode()}"
        now = await self._reports(lambda now: have_verified(before, now))
        assert_right(now)
        return now

    async def finish(self, node: GuestNode) -> None:
        """It ends, well."""
        assert (await node.run("kill", "-TERM", self.pid)).code == 0
        assert_right(await self._reports(lambda now: all(one.state == "bye" for one in now)))

    def assert_rounds(self, pages: dict[str, int], rounds: int) -> None:
        """What does not change was brought once: never again by CRIU, whether it then went out or the cache had it.

        Only a child that is new has nothing in the rounds before; and of huge pages a change takes the rest along.
        """
        known = 0 if self.kind.huge else 1 if "--forks" in self.kind.options else self.kind.procs
        again = self.kind.memory - known * STILL
        brought = sum(pages.values()) * PAGE
        assert self.kind.procs * STILL < brought < self.kind.memory + rounds * again, f"{rounds} rounds: {pages}"


def summary(done: Ended) -> dict[str, Any]:
    """The last line of a migration."""
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


async def assert_runs_once(moved: Moved, node: GuestNode, other: GuestNode) -> None:
    """On one node; a child that is just being replaced may be missing."""
    count = ("pgrep", "-c", "-r", "R,S,D", "-x", "edge")
    here, elsewhere, together = [int((await where.run(*count)).stdout) for where in (node, other, moved.vm)]
    missing = 1 if "--forks" in moved.kind.options else 0
    assert elsewhere == 0, f"{elsewhere} processes run on the other node, too"
    for found in (here, together):
        assert moved.kind.procs - missing <= found <= moved.kind.procs, f"{found} processes run"


async def move(moved: Moved, here: GuestNode, there: GuestNode, draw: random.Random) -> str:
    """One migration; what was drawn, and what came of it."""
    rounds, options = draw.choice(ROUNDS), [*draw.choice(LINKS), *draw.choice(RESTORES)]
    before = await moved.verified(here)
    done = await here.migrate(moved.pid, there, ["--rounds", str(rounds), *options])
    told = f"{rounds} rounds, {' '.join(options)} to {there.name}"
    assert done.code == 0, f"{told}: {done.output}"
    assert ("runs there, its memory is being put" in done.stdout) is ("--lazy" in options), f"{told}: {done.stdout}"
    after = await moved.verified(there)
    await assert_runs_once(moved, there, here)
    sizes = summary(done)["rounds"]
    assert len(sizes) == rounds + 1, f"{told}: {done.output}"
    moved.assert_rounds(summary(done)["pages"], rounds)
    if "--churn" in moved.kind.options:
        assert after[0].changes > before[0].changes + 10 * rounds, "nothing was mapped or unmapped between rounds"
    if "--forks" in moved.kind.options:
        assert after[0].forks > before[0].forks + 1, "nothing was forked between rounds"
    assert after[0].beat >= before[0].beat
    return f"{told}: {sizes} {summary(done)['pages']}, frozen {summary(done)['frozen']:.1f} s"


async def test_no_page_is_of_another_moment(programs: Programs) -> None:
    draw = random.Random(SEED)
    async with guest("amd64", Hardware(steady=True)) as vm:
        done = await vm.run("imgproxy", "certs", CERTIFICATES, "127.0.0.1", deadline=PATIENCE)
        assert done.code == 0, done.output
        b, c = await open_nodes(vm, TLS_FILES)
        made = 0
        for number, (name, kind) in enumerate(KINDS.items()):
            moved = Moved(vm, kind)
            await moved.start(programs, b)
            here, there = b, c
            while made * len(KINDS) < (number + 1) * MOVES:
                try:
                    print(f"{name}, {made}:", await move(moved, here, there, draw), flush=True)
                except AssertionError as error:
                    raise AssertionError(f"seed {SEED}, move {made}, {name}: {error}") from error
                here, there = there, here
                made += 1
            await moved.finish(here)
