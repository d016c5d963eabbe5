"""`imgproxy trap` and `imgproxy spawn`: processes stopped at points, again and again, that come to their right ends.

IMGPROXY_TRAPS says how many stops at random moments, and how many monitors killed at one; IMGPROXY_SEED draws them.
"""

import os
import random
import resource
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio

from imgnode import proc
from imgproxy.trap import NotStopped, Stopped, release, spawn, trap
from imgwire.errors import UsageError

pytestmark = pytest.mark.t2

PROGRAMS = Path(__file__).parent / "programs"
TRAPS = int(os.environ.get("IMGPROXY_TRAPS", "8"))
SEED = int(os.environ.get("IMGPROXY_SEED", "1"))
ROUNDS = "1200"  #: of busy.c: it runs for some three seconds
DEADLINE = 60.0  # seconds for what takes milliseconds, on a machine with much else to do
LOOK = 1  # milliseconds between two looks for what nobody tells us
GUARDIAN = 0.05  # seconds that the guardian takes from its start to its end, on a machine with nothing else to do

Start = Callable[..., subprocess.Popen[bytes]]
Build = Callable[[str], Path]


@pytest.fixture(scope="session")
def build(hetcc: Path, tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Makes a pair of one of the programs, once; the path of this machine's."""
    place = tmp_path_factory.mktemp("trap")

    def make(name: str) -> Path:
        if not (place / name).exists():
            words: list[str | Path] = [hetcc, "-O2", PROGRAMS / f"{name}.c", "-o", place / name]
            subprocess.run(words, check=True, timeout=DEADLINE)
        return place / name

    return make


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes, with pipes; they are dead when the test is over."""
    with ExitStack() as started:

        def begin(*words: object) -> subprocess.Popen[bytes]:
            process = subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield begin


async def end_of(process: subprocess.Popen[bytes]) -> bytes:
    """What it wrote, when it has ended well."""
    output, _ = await trio.to_thread.run_sync(lambda: process.communicate(timeout=DEADLINE))
    assert process.returncode == 0, process.returncode
    return output


@pytest.fixture(scope="session")
def busy(build: Build) -> tuple[Path, bytes]:
    """The program that does everything, and what it writes if nobody disturbs it."""
    program = build("busy")
    return program, subprocess.run([program, ROUNDS], capture_output=True, check=True, timeout=DEADLINE).stdout


def states(pid: int) -> set[str]:
    """State and tracer of each thread."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        status = (task / "status").read_text()
        found.add(" ".join(line for line in status.splitlines() if line.startswith(("State", "TracerPid"))))
    return found


STANDS = {"State:\tT (stopped) TracerPid:\t0"}


async def test_at_random_moments(busy: tuple[Path, bytes], start: Start) -> None:
    """All threads stand at points, where a second trap finds them; all comes to its right end."""
    program, output = busy
    moments = random.Random(SEED)
    kinds: set[str] = set()
    left = TRAPS
    while left:
        process = start(program, ROUNDS)
        while left and process.poll() is None:
            await trio.sleep(moments.random() * 0.2)
            stopped = await _trapped(process)
            if stopped is None:
                break
            left -= 1
            kinds |= {kind for _, kind, _ in stopped.points}
            release(process.pid)
        assert await end_of(process) == output
    assert len(kinds) > 1


async def _trapped(process: subprocess.Popen[bytes]) -> Stopped | None:
    """Stopped, which a second look confirms; None if it has ended."""
    try:
        async with trap(process.pid, DEADLINE) as stopped:
            pass
    except (NotStopped, UsageError):
        assert process.wait(DEADLINE) == 0
        return None
    assert states(process.pid) == STANDS
    async with trap(process.pid, DEADLINE) as again:
        assert again.hits == 0
        assert {tid for tid, *_ in again.points} == {tid for tid, *_ in stopped.points}
    return stopped


async def test_the_monitor_is_killed_at_random_moments(busy: tuple[Path, bytes], start: Start) -> None:
    program, output = busy
    moments = random.Random(SEED)
    left = max(1, TRAPS // 2)
    while left:
        process = start(program, ROUNDS)
        while left and process.poll() is None:
            left -= 1
            if await _kill_monitor(process.pid, moments.random() * GUARDIAN):
                release(process.pid)
        assert await end_of(process) == output


async def _kill_monitor(pid: int, after: float) -> bool:
    """Kill `imgproxy trap` so long after its guardian was started; whether it had said that the process is stopped."""
    words = [sys.executable, "-m", "imgproxy", "trap", str(pid)]
    monitor = await trio.lowlevel.open_process(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert monitor.stdout and monitor.stderr
    async with monitor.stdout, monitor.stderr:
        guardians = await trio.to_thread.run_sync(_children, monitor.pid)
        await trio.sleep(after)
        monitor.kill()
        await monitor.wait()
        said = await monitor.stdout.receive_some()
    await trio.to_thread.run_sync(proc.wait_dead, guardians, DEADLINE)
    return b"is stopped" in said


def _children(pid: int) -> list[proc.ProcessId]:
    """Of a process, as soon as it has some, or has ended."""
    parent = proc.identify(pid)
    while not (found := proc.children(parent)) and proc.is_alive(parent):
        select.poll().poll(LOOK)
    return found


async def test_in_a_signal_handler(build: Build, start: Start) -> None:
    """Its end is waited for; up to the deadline, and then all is as it was."""
    process = start(build("handler"), 1500)
    assert process.stdout
    process.stdout.readline()
    process.send_signal(signal.SIGUSR1)
    await trio.to_thread.run_sync(until_asleep, process.pid)
    with pytest.raises(NotStopped, match="not all threads have come to a point in time"):
        async with trap(process.pid, 0.1):
            pass
    assert states(process.pid) == {"State:\tS (sleeping) TracerPid:\t0"}
    async with trap(process.pid, DEADLINE) as stopped:
        assert [kind for _, kind, _ in stopped.points] != []
    release(process.pid)
    assert await end_of(process) == b"1 -1\n"


def until_asleep(pid: int) -> None:
    while "State:\tS" not in Path(f"/proc/{pid}/status").read_text():
        select.poll().poll(LOOK)


async def test_an_error_while_it_is_stopped_lets_it_continue(busy: tuple[Path, bytes], start: Start) -> None:
    program, output = busy
    process = start(program, ROUNDS)
    with pytest.raises(RuntimeError, match="of ours"):
        async with trap(process.pid, DEADLINE):
            assert states(process.pid) == STANDS
            raise RuntimeError("of ours")
    assert await end_of(process) == output


#: Holds a process that is stopped, as CRIU does: when it lets go, the process stops again.
HOLDS = """
import os, signal, sys
from imgnode.ptrace import FOLLOW, Tracee, wait
pid = int(sys.argv[1])
tracees = [Tracee.seize(int(tid), FOLLOW) for tid in os.listdir(f"/proc/{pid}/task")]
for tracee in tracees:
    tracee.interrupt()
    wait(tracee.tid, block=True)
print(flush=True)
sys.stdin.read()
os.kill(pid, signal.SIGSTOP)
for tracee in sorted(tracees, key=lambda one: one.tid != pid):
    tracee.detach()
"""
#: Traps a process, and waits.
MONITOR = """
import sys, trio
from imgproxy.trap import trap
async def main():
    async with trap(int(sys.argv[1]), float(sys.argv[2])):
        print(flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


async def test_the_monitor_is_killed_while_criu_holds_the_process(busy: tuple[Path, bytes], start: Start) -> None:
    """CRIU, whose migration has failed with the monitor, leaves it as it was: stopped."""
    program, output = busy
    process = start(program, ROUNDS)
    monitor = start(sys.executable, "-c", MONITOR, process.pid, DEADLINE)
    guardians = await told_and_children(monitor)
    criu = start(sys.executable, "-c", HOLDS, process.pid)
    await told_and_children(criu)
    monitor.kill()
    await waitid(monitor.pid, os.WEXITED)
    await trio.sleep(GUARDIAN)  # which hears of it at once
    assert all(f"TracerPid:\t{criu.pid}" in state for state in states(process.pid))
    await end_of(criu)
    assert await end_of(process) == output
    await trio.to_thread.run_sync(proc.wait_dead, guardians, DEADLINE)


async def told_and_children(process: subprocess.Popen[bytes]) -> list[proc.ProcessId]:
    """The children of a process that has written a line."""
    assert process.stdout
    await trio.to_thread.run_sync(process.stdout.readline)
    return proc.children(proc.identify(process.pid))


async def test_what_was_stopped_before_stays_so(busy: tuple[Path, bytes], start: Start) -> None:
    """Also if it is not brought to points: who has stopped it will have it continue."""
    program, output = busy
    process = start(program, ROUNDS)
    process.send_signal(signal.SIGSTOP)
    await waitid(process.pid, os.WSTOPPED)
    with pytest.raises(RuntimeError, match="of ours"):
        async with trap(process.pid, DEADLINE):
            raise RuntimeError("of ours")
    assert states(process.pid) == STANDS
    release(process.pid)
    assert await end_of(process) == output


async def waitid(pid: int, what: int) -> None:
    """Until a child has stopped or ended, without taking note."""
    await trio.to_thread.run_sync(os.waitid, os.P_PID, pid, what | os.WNOWAIT)


def imgproxy(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "imgproxy", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)


def test_the_commands(busy: tuple[Path, bytes], tmp_path: Path) -> None:
    program, output = busy
    with (tmp_path / "output").open("wb") as file:
        command = [sys.executable, "-m", "imgproxy", "spawn", "--at", "compute", "--", str(program), ROUNDS]
        # its standard streams are the program's
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, check=True, timeout=DEADLINE)
    assert done.returncode == 0
    line = (tmp_path / "output").read_text()
    assert line.startswith("process ") and "threads: " in line
    pid = int(line.split()[1])
    assert states(pid) == STANDS
    assert imgproxy("trap", pid).stdout.startswith(f"process {pid} is stopped")
    let_go = imgproxy("trap", "--release", pid)
    assert let_go.returncode == 0, let_go.stderr
    wait_gone(pid)
    assert (tmp_path / "output").read_bytes().split(b"\n", 1)[1] == output


def wait_gone(pid: int) -> None:
    """Until a process that is nobody's child has ended, or has ended already."""
    with suppress(ProcessLookupError):
        proc.wait_dead([proc.identify(pid)], DEADLINE)


@asynccontextmanager
async def spawned(*words: object, at: str = "main") -> AsyncIterator[Stopped]:
    """Spawned, and let go of; it has ended when the block has."""
    async with spawn([str(word) for word in words], at, DEADLINE) as stopped:
        yield stopped
    release(stopped.pid)
    await trio.to_thread.run_sync(wait_gone, stopped.pid)


async def test_spawn_at_a_function(busy: tuple[Path, bytes], capfd: pytest.CaptureFixture[str]) -> None:
    program, output = busy
    async with spawned(program, ROUNDS) as stopped:
        assert states(stopped.pid) == STANDS
        assert len(stopped.points) == 1, "main has made no thread yet"
    async with spawned(program, ROUNDS, at="listen") as stopped:
        assert len(stopped.points) > 1, "which is a thread's"
    assert capfd.readouterr().out.encode() == 2 * output


@pytest.mark.parametrize(
    ("words", "at", "reason"),
    [
        (["busy", "1"], "nothing", "has no function nothing"),
        (["/bin/true"], "main", "hetcc did not make it"),
        (["/etc/passwd"], "main", "not an executable"),
    ],
)
async def test_spawn_refuses(build: Build, words: list[str], at: str, reason: str) -> None:
    if words[0] == "busy":
        words = [str(build("busy")), *words[1:]]
    with pytest.raises(UsageError, match=reason):
        async with spawn(words, at):
            pass


async def test_a_program_that_ends_before(busy: tuple[Path, bytes]) -> None:
    with pytest.raises(NotStopped, match="it ended before that"):
        async with spawn([str(busy[0]), "1"], "never"):
            pass


async def test_trap_refuses(busy: tuple[Path, bytes], start: Start) -> None:
    async def refused(pid: int, reason: str) -> None:
        with pytest.raises(UsageError, match=reason):
            async with trap(pid):
                pass

    await refused(resource.RLIM_INFINITY % (1 << 22) + 1, "there is no process")
    await refused(os.getpid(), "hetcc did not make it")
    process = start(busy[0], ROUNDS)
    with pytest.raises(UsageError, match="is not stopped"):
        release(process.pid)
    async with trap(process.pid, DEADLINE) as stopped:
        other = next(tid for tid, *_ in stopped.points if tid != process.pid)
        await refused(other, f"{other} is a thread of process {process.pid}")
    process.kill()
    await waitid(process.pid, os.WEXITED)
    await refused(process.pid, "has ended, and is a zombie")


async def test_one_that_is_traced_is_refused(busy: tuple[Path, bytes], start: Start) -> None:
    process = start(busy[0], ROUNDS)
    code = "import sys; from imgnode.ptrace import Tracee\n"
    code += "Tracee.seize(int(sys.argv[1]), 0); print(flush=True); sys.stdin.read()"
    tracer = start(sys.executable, "-c", code, process.pid)
    assert tracer.stdout
    tracer.stdout.readline()
    with pytest.raises(UsageError, match=rf"is traced by {tracer.pid} \(python"):
        async with trap(process.pid):
            pass
    await end_of(tracer)
    await end_of(process)
