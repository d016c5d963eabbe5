"""The guests are what tests may rely on, and the project works in them, on both ISAs and over their network."""

import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from tests.nodes import DEADLINE, open_nodes, start_cache
from tests.programs import Programs
from tests.testbed import pattern
from tests.testbed.guest import ROOT, Command, Guest, guest
from tests.testbed.machine import HOST, ISAS, Hardware

pytestmark = pytest.mark.t3

EMULATED = 120.0  # seconds for a program of the project; alone it takes 10 to start, emulated
ANSWERS = "/run/answers"
CACHE = "127.0.0.1:7000"
LISTEN = ("--listen", CACHE)
MOVED = ("--session", "moved", "--insecure")
#: A program that shows what the first who connects to port 7000 has to say.
LISTENER = """
import socket, sys
server = socket.create_server(("0.0.0.0", 7000))
print("ready", file=sys.stderr, flush=True)
print(server.accept()[0].makefile().read())
"""
#: A program that starts a machine, tells its pid, and waits.
BOOT = """
import signal
from pathlib import Path

from tests.testbed.guest import PLACES, USUAL
from tests.testbed.machine import running

with running("amd64", PLACES, USUAL):
    print(Path("/proc/thread-self/children").read_text(), flush=True)
    signal.pause()
"""


@dataclass
class Patterned:
    """The process that knows its memory, wherever in a guest it is."""

    vm: Guest
    answers: int = 0

    async def start(self) -> None:
        """As CRIU likes it: in a session of its own, on /dev/null."""
        quiet = f'mkfifo {ANSWERS} && "$@" </dev/null >/dev/null 2>&1 &'
        done = await self.vm.run("sh", "-c", quiet, "sh", "setsid", "python3", "-S", pattern.__file__, ANSWERS)
        assert done.code == 0, done.output
        await self._expect("cat", ANSWERS)

    async def pid(self) -> int:
        """Its pid in the guest. AssertionError unless there is exactly one."""
        pids = await self.pids()
        assert len(pids) == 1
        return pids[0]

    async def pids(self) -> list[int]:
        """Of all that run."""
        return [int(pid) for pid in (await self.vm.run("pgrep", "-f", f"^python3 .*{ANSWERS}$")).stdout.split()]

    async def verify(self) -> None:
        """It runs, once, its memory is right, and it goes on from where it was."""
        await self._expect("sh", "-c", f"kill -USR1 {await self.pid()} && cat {ANSWERS}")

    async def _expect(self, *command: str) -> None:
        done = await self.vm.run(*command)
        assert done.stdout == f"{self.answers} right", done.output
        self.answers += 1


async def other_pids(vm: Guest) -> list[str]:
    """Words before a command that let it see other processes, with other pids, as on another machine."""
    stay = "echo 3000 >/proc/sys/kernel/ns_last_pid && echo ready >&2 && exec sleep 1001"
    await (await vm.start("unshare", "--pid", "--fork", "--mount-proc", "sh", "-c", stay)).wait_stderr("ready")
    init = (await vm.run("pgrep", "-f", "^sleep 1001$")).stdout.strip()
    return ["nsenter", "-t", init, "-p", "-m"]


async def start(vm: Guest, *words: object) -> Command:
    """Start a program of the project, make the images directory that it names, and wait until it is ready."""
    directory = words[words.index("-D") + 1]
    assert (await vm.run("mkdir", "-m", "700", directory)).code == 0
    program = await vm.start(*words)
    await program.wait_stderr('"ready"', EMULATED)
    return program


async def dump_through(vm: Guest, proxy: Command, pid: int) -> None:
    """Run `criu dump` with a proxy in /run/here, to the end of both."""
    options = ["-t", pid, "--stream", "-D", "/run/here", "--action-script", "/run/here/imgproxy-hook"]
    dumped = await vm.run("criu", "dump", *options, deadline=EMULATED)
    assert dumped.code == 0, dumped.output + proxy.stderr
    done = await proxy.wait(EMULATED)
    assert done.code == 0, done.output


@pytest.mark.parametrize("isa", ISAS)
async def test_criu_works(isa: str) -> None:
    async with guest(isa) as vm:
        assert vm.release.endswith(f"deb13-{isa}")
        check = await vm.run("criu", "check")
        assert check.code == 0, check.output
        tracks = await vm.run("criu", "check", "--feature", "mem_dirty_track")
        assert (tracks.code == 0) == (isa == "amd64"), "only there the kernel knows which pages were written"
        process = Patterned(vm)
        await process.start()
        for action in (("dump", "-t", await process.pid()), ("restore", "-d")):
            done = await vm.run("criu", *action, "-D", "/tmp", "-o", "log")
            assert done.code == 0, done.output + (await vm.get("/tmp/log")).decode()
            assert len(await process.pids()) == (action[0] == "restore")
        await process.verify()


async def test_what_commands_do_is_seen() -> None:
    """On one ISA: all of it is Python."""
    async with guest("arm64") as vm:
        done = await vm.run("sh", "-c", "pwd; echo bad >&2; exit 3", directory="/usr")
        assert (done.code, done.stdout, done.stderr) == (3, "/usr\n", "bad\n")
        assert (await vm.run("no-such-command")).code == 127
        content = os.urandom(1 << 20)
        await vm.put(content, "/tmp/a file", 0o600)
        assert await vm.get("/tmp/a file") == content
        assert (await vm.run("stat", "-c", "%a %s", "/tmp/a file")).stdout == f"600 {len(content)}\n"
        assert await vm.get(__file__) == Path(__file__).read_bytes(), "the clone is there, under the same path"
        assert (await vm.run("touch", ROOT / "new")).code == 1, "to be read only"
        sleeper, talker = await vm.start("sleep", "1000"), await vm.start("sh", "-c", "echo up >&2; exec cat")
        await talker.wait_stderr("up\n")
        await talker.write(b"echoed")
        await talker.end_input()
        assert (await talker.wait()).stdout == "echoed"
        assert sleeper.code is None
        await sleeper.signal(signal.SIGTERM)
        assert (await sleeper.wait()).code == -signal.SIGTERM
        with pytest.raises(AssertionError, match=r"sleep 1000 in arm64 guest: to end, not within 0\.1 s"):
            await vm.run("sleep", "1000", deadline=0.1)
        listener = await vm.start("python3", "-S", "-c", LISTENER)
        await listener.wait_stderr("ready")
        port = await vm.forward(7000)
        assert await vm.forward(7000) == port
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(b"from outside")
        assert (await listener.wait()).stdout == "from outside\n"
        waiting = await vm.start("sleep", "1000")
        await vm.start("poweroff", "-f")
        with pytest.raises(AssertionError, match="console of arm64 guest"):
            await waiting.wait()


async def test_a_process_migrates_inside() -> None:
    """From one images directory to another, between two sets of pids."""
    async with guest("amd64") as vm:
        process = Patterned(vm)
        await process.start()
        cache = await start(vm, *await other_pids(vm), "imgcache", "-D", "/run/there", *LISTEN, "--allow-restore")
        before = await process.pid()
        done = await vm.run("imgproxy", "migrate", before, "--to", CACHE, deadline=EMULATED)
        assert done.code == 0, done.output + cache.stderr
        assert await process.pid() != before, "there it has other pids, seen from here"
        await process.verify()


async def test_a_process_is_dumped_to_its_restore() -> None:
    """The same by hand: `migrate` has CRIU compare the CPUs, which it cannot on this ISA."""
    async with guest("arm64") as vm:
        process = Patterned(vm)
        await process.start()
        before = await process.pid()
        there = await other_pids(vm)
        cache = await start(vm, *there, "imgcache", "-D", "/run/there", *LISTEN)
        options = ["--stream", "-D", "/run/there", "--action-script", "/run/there/imgcache-hook"]
        restoring = await vm.start(*there, "criu", "restore", "-d", *options)
        await dump_through(vm, await start(vm, "imgproxy", "-D", "/run/here", "--to", CACHE), before)
        restored = await restoring.wait(EMULATED)
        assert restored.code == 0, restored.output + cache.stderr
        assert await process.pid() != before, "there it has other pids, seen from here"
        await process.verify()


async def test_images_reach_the_host(programs: Programs, make_node_dir: Callable[[], Path], tmp_path: Path) -> None:
    """`criu dump` and the proxy in a guest, the cache here. The guest's CPU is one that any host's can stand in for."""
    async with guest("amd64", Hardware(cpu="Nehalem")) as vm, open_nodes(programs, make_node_dir) as nodes:
        host = await nodes.make()
        cache = await start_cache(host)
        process = Patterned(vm)
        await process.start()
        pid = await process.pid()
        to = f"{HOST}:{cache.address.rpartition(':')[2]}"
        await dump_through(vm, await start(vm, "imgproxy", "-D", "/run/here", "--to", to, *MOVED), pid)
        assert not await process.pids(), "it has been given up"
        extracted = await host.run("imgcache", "extract", "moved", tmp_path / "images", "-D", host.directory)
        assert extracted.code == 0, extracted.output
        assert {"inventory.img", f"core-{pid}.img"} <= {image.name for image in (tmp_path / "images").iterdir()}
        pages = (tmp_path / "images/pages-1.img").read_bytes()
        assert all(pattern.page(number)[:-8] in pages for number in range(pattern.PAGES))


def test_a_guest_ends_with_its_test() -> None:
    """Also if that is killed: nobody but the kernel can end it then."""
    with subprocess.Popen([sys.executable, "-c", BOOT], cwd=ROOT, stdout=subprocess.PIPE) as killed:
        assert killed.stdout
        machine = os.pidfd_open(int(killed.stdout.readline()))
        killed.kill()
    ended, _, _ = select.select([machine], [], [], DEADLINE)
    os.close(machine)
    assert ended


def run_script(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [ROOT / "scripts/testbed", *words], capture_output=True, text=True, timeout=EMULATED, check=False
    )


def test_one_command_by_hand() -> None:
    done = run_script("boot", "arm64", "--", "sh", "-c", "uname -m; echo bad >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "aarch64\n", "bad\n")


@pytest.mark.parametrize(
    "words", [[], ["boot"], ["boot", "vax"], ["boot", "arm64", "uname"], ["setup", "amd64", "vax"]]
)
def test_a_wrong_call_is_told_the_right_ones(words: list[str]) -> None:
    done = run_script(*words)
    assert done.returncode == 2
    assert len(re.findall("^usage: scripts/testbed (setup|boot) ", done.stderr, re.MULTILINE)) == 3
