"""Pre-dumps and a dump that a user types, where the kernel tracks changes: with the options of `imgproxy rounds`."""

import pytest

from imgnode.command_line import parse_size
from tests.nodes import Ended
from tests.programs import Programs
from tests.testbed.guest import Command, Guest, guest
from tests.testbed.test_guests import CACHE, EMULATED, LISTEN, other_pids
from tests.testbed.test_near_live import SIZE, Tree

pytestmark = pytest.mark.t3

R = "/run/rounds"
SLOW = 5 * EMULATED  #: one step starts up to four programs, and the machine may have other things to do
#: One more CRIU, as a shell makes it: action, pid, options of `imgproxy rounds`, of CRIU.
TYPED = f"criu $1 -t $2 $(imgproxy rounds -D {R} $3) $4"


async def typed(vm: Guest, action: str, pid: int, *, last: bool = False, more: str = "") -> int:
    """Type one more; its exit code."""
    done = await vm.run("sh", "-c", TYPED, "sh", action, pid, "--last" if last else "", more, deadline=SLOW)
    return done.code if done.code is not None else -1


async def start_proxy(vm: Guest) -> Command:
    await vm.run("mkdir", "-p", "-m", "700", R)
    proxy = await vm.start("imgproxy", "--rounds", "-D", R, "--to", CACHE, "--reconnect", "600")
    await proxy.wait_stderr('"ready"', SLOW)
    return proxy


#: The destination, all in one namespace of pids: a cache, and a restore that waits for its images.
THERE = f"""
mkdir -m 700 /run/there
imgcache -D /run/there {" ".join(LISTEN)} &
until [ -S /run/there/streamer-serve.sock ]; do sleep 0.1; done
criu restore --stream -D /run/there -d -o /run/restore.log --action-script /run/there/imgcache-hook
wait
"""


async def test_rounds_that_go_well_and_rounds_that_do_not(programs: Programs) -> None:
    async with guest("amd64") as vm:
        tree = Tree(vm)
        root = await tree.start(programs)
        there = await vm.start(*await other_pids(vm), "sh", "-c", THERE)
        await there.wait_stderr('"ready"', SLOW)
        proxy = await start_proxy(vm)
        assert await typed(vm, "pre-dump", root) == 0, proxy.stderr
        await dies_at_work(vm, proxy, root)
        assert await typed(vm, "pre-dump", root) == 0, proxy.stderr
        assert await typed(vm, "pre-dump", root, more="-W /run -o fourth.log") == 0, proxy.stderr
        assert await typed(vm, "pre-dump", root, more="--pre-dump-mode read") != 0
        assert await typed(vm, "dump", root) != 0, "without the action script"
        assert proxy.stderr.count('"turned away from the page server"') == 2
        assert await typed(vm, "dump", root, last=True, more="-o dump.log") == 0, proxy.stderr
        done = await proxy.wait(SLOW)
        assert done.code == 0, done.output + there.stderr
        assert proxy.stderr.count("was dropped") == 1
        await tree.verify()
        first, _, small, last = sizes(done)
        assert first > 2 * SIZE, "what each process verifies is in it"
        assert brought(done) > 2 * (2 * SIZE), "it was brought again, for dirty tracking began anew"
        assert max(small, last) < 0.85 * first, "what never changes is as the round before has it"


async def dies_at_work(vm: Guest, proxy: Command, root: int) -> None:
    """A pre-dump is killed, when it has let the tasks go: earlier it could take them along. It cannot have come to its
    end: the cache, which is held, does not say that it has all."""
    log = "/run/dying.log"
    dying = await vm.start("sh", "-c", TYPED, "sh", "pre-dump", root, "", f"-v4 -o {log}")
    assert (await vm.run("pkill", "-STOP", "-f", "imgcache -D")).code == 0
    await proxy.wait_stderr('"round 2 begins"', SLOW)
    gone_on = f"until grep -q 'Pre-dumping tasks' {log}; do sleep 0.1; done"
    assert (await vm.run("sh", "-c", gone_on, deadline=SLOW)).code == 0
    assert (await vm.run("pkill", "-KILL", "-f", "^criu pre-dump")).code == 0
    assert (await vm.run("pkill", "-CONT", "-f", "imgcache -D")).code == 0
    await dying.wait(SLOW)
    await proxy.wait_stderr('"round 2 was dropped; the process runs on"', SLOW)


def sizes(done: Ended) -> list[int]:
    """Bytes of each round, as the proxy tells at its end."""
    line = next(line for line in done.stdout.splitlines() if line.startswith("rounds "))
    return [parse_size(text) for text in line.removeprefix("rounds").split(",")]


def brought(done: Ended) -> int:
    """Bytes of the pages that CRIU brought in all rounds, whether they went out or the cache had them."""
    line = next(line for line in done.stdout.splitlines() if line.startswith("pages "))
    return sum(parse_size(part.split()[0] + part.split()[1]) for part in line.removeprefix("pages").split(","))
