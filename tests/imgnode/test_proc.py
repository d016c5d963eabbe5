"""Facts from /proc about real processes: started here, threaded, zombie, traced, killed."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest

from imgnode import proc

pytestmark = pytest.mark.t1

MIB = 2**20

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts Python children that say a line when they are ready and live until their stdin ends."""
    children: list[subprocess.Popen[bytes]] = []

    def run(code: str, *, wait: str = "sys.stdin.read()", pass_fds: tuple[int, ...] = ()) -> "subprocess.Popen[bytes]":
        script = f"import os, sys\n{code}\nprint(flush=True)\n{wait}\n"
        child = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=pass_fds
        )
        children.append(child)
        _pipe(child.stdout).readline()
        return child

    yield run
    for child in children:
        child.kill()  # all of them first: a traced one cannot be waited for until its tracer is gone
    for child in children:
        child.wait(10)
        for pipe in (child.stdin, child.stdout):
            _pipe(pipe).close()


def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


def test_imports_nothing_heavy() -> None:
    code = "import sys, imgnode.proc; print(sorted({'trio', 'structlog', 'socket', 'ssl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=30)
    assert done.stdout.strip() == b"[]"


def test_identity(start: Start) -> None:
    child = start("")
    identity = proc.identify(child.pid)
    assert identity == proc.identify(child.pid)
    assert identity != proc.identify(os.getpid())
    assert identity.boot_id == proc.boot_id()
    assert proc.is_alive(identity)


def test_another_start_time_or_boot_is_another_process() -> None:
    me = proc.identify(os.getpid())
    assert proc.is_alive(me)
    assert not proc.is_alive(me._replace(start_time=me.start_time - 1))
    assert not proc.is_alive(me._replace(boot_id="0"))


def test_a_name_with_spaces_and_parentheses(start: Start) -> None:
    child = start("open('/proc/self/comm', 'w').write(') Z 1 (x')")
    assert proc.is_alive(proc.identify(child.pid))


def test_nobody_has_the_pid(start: Start) -> None:
    child = start("")
    identity = proc.identify(child.pid)
    child.kill()
    child.wait()
    assert not proc.is_alive(identity)
    assert proc.open_pidfd(identity) is None
    for ask in (proc.identify, proc.tree, proc.tracer, proc.memory_estimate):
        with pytest.raises(ProcessLookupError):
            ask(child.pid)
    assert proc.own_socket_inodes(child.pid) == set()


def test_a_zombie_is_dead(start: Start) -> None:
    child = start("")
    identity = proc.identify(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert not proc.is_alive(identity)
    assert proc.open_pidfd(identity) is None
    assert proc.memory_estimate(child.pid) == 0


def test_threads_that_outlive_the_first_are_alive(start: Start) -> None:
    """The leader has left with pthread_exit: its state is Z, its threads run."""
    child = start(
        "import ctypes, threading, time\n"
        "def other():\n"
        "    while open('/proc/self/stat').read().rpartition(')')[2].split()[0] != 'Z': time.sleep(0.001)\n"
        "    os.write(1, b'left\\n')\n"
        "    sys.stdin.buffer.raw.read()\n"
        "threading.Thread(target=other, daemon=True).start()",
        wait="ctypes.CDLL(None).syscall(60 if os.uname().machine == 'x86_64' else 93, 0)",
    )
    assert _pipe(child.stdout).readline() == b"left\n"
    identity = proc.identify(child.pid)
    assert proc.is_alive(identity)
    fd = proc.open_pidfd(identity)
    assert fd is not None
    os.close(fd)
    proc.kill_tree([identity])
    proc.wait_dead([identity], 5)
    assert not proc.is_alive(identity)


def _forked(start: Start, levels: int, width: int) -> "tuple[subprocess.Popen[bytes], int]":
    """A child with a tree below it; and how many processes there are.

    Each says a line when its children exist.
    """
    child = start(
        "def fork(levels):\n"
        f"    for _ in range({width} if levels else 0):\n"
        "        if os.fork() == 0:\n"
        "            fork(levels - 1)\n"
        "            os.write(1, b'\\n')\n"
        "            sys.stdin.read()\n"
        "            os._exit(0)\n"
        f"fork({levels})"
    )
    count = sum(width**level for level in range(levels + 1))
    for _ in range(count - 1):
        assert _pipe(child.stdout).readline() == b"\n"
    return child, count


def test_tree(start: Start) -> None:
    child, count = _forked(start, 2, 3)
    found = proc.tree(child.pid)
    assert len(set(found)) == len(found) == count
    assert found[0].pid == child.pid
    pids = [process.pid for process in found]
    for index, process in enumerate(found[1:], 1):
        stat = Path(proc.PROC, str(process.pid), "stat").read_text()
        assert int(stat.rpartition(")")[2].split()[1]) in pids[:index]
    proc.kill_tree(found)
    proc.wait_dead(found, 5)
    assert not any(proc.is_alive(process) for process in found)


def test_tree_sees_children_of_threads(start: Start) -> None:
    child = start(
        "import threading\n"
        "def spawn():\n"
        "    if os.fork() == 0:\n"
        "        sys.stdin.read(); os._exit(0)\n"
        "    forked.set(); sys.stdin.read()\n"
        "forked = threading.Event()\n"
        "threading.Thread(target=spawn, daemon=True).start(); forked.wait()"
    )
    found = proc.tree(child.pid)
    assert len(found) == 2
    proc.kill_tree(found)
    proc.wait_dead(found, 5)


def test_ancestors_of_a_child_and_of_nobody(start: Start) -> None:
    child = start("")
    found = proc.ancestors(child.pid)
    assert found[:3] == [child.pid, os.getpid(), os.getppid()] and found[-1] == 1
    child.kill()
    child.wait(10)
    assert proc.ancestors(child.pid) == [child.pid]
    assert proc.ancestors(0) == []


def test_command_line(start: Start) -> None:
    child = start("")
    words = proc.command_line(child.pid)
    assert words[:2] == [sys.executable, "-c"] and len(words) == 3 and "stdin" in words[2]
    child.kill()
    child.wait(10)
    with pytest.raises(ProcessLookupError):
        proc.command_line(child.pid)


def test_kill_tree_kills_the_stopped_and_ignores_the_dead(start: Start) -> None:
    stopped, dead = start(""), start("")
    ids = [proc.identify(child.pid) for child in (dead, stopped)]
    dead.kill()
    dead.wait()
    os.kill(stopped.pid, signal.SIGSTOP)
    proc.kill_tree(ids)
    assert stopped.wait(5) == -signal.SIGKILL


def test_kill_tree_spares_another_process_with_the_pid(start: Start) -> None:
    child = start("")
    identity = proc.identify(child.pid)
    proc.kill_tree([identity._replace(start_time=identity.start_time + 1)])
    assert proc.is_alive(identity)


def test_wait_dead_gives_up(start: Start) -> None:
    child = start("")
    with pytest.raises(TimeoutError, match=f"process {child.pid} still lives"):
        proc.wait_dead([proc.identify(child.pid)], 0.02)


def test_tracer(start: Start) -> None:
    traced = start("")
    assert proc.tracer(traced.pid) == 0
    tracer = start(
        f"import ctypes\nassert ctypes.CDLL(None).ptrace(0x4206, {traced.pid}, None, None) == 0  # PTRACE_SEIZE\n"
    )
    assert proc.tracer(traced.pid) == tracer.pid


def test_memory_estimate_private(start: Start) -> None:
    small = start("")
    large = start("held = bytearray(os.urandom(64)) * (1 << 20)")
    difference = proc.memory_estimate(large.pid) - proc.memory_estimate(small.pid)
    assert 64 * MIB <= difference < 66 * MIB


def test_memory_estimate_counts_shared_memory_once(start: Start) -> None:
    shared = (
        "import mmap\n"
        "held = mmap.mmap(-1, 32 << 20); held.write(b'x' * (32 << 20))\n"
        "def touch():\n"
        "    for at in range(0, len(held), 4096): held[at]\n"
    )
    forks = (
        "for _ in range(3):\n"
        "    if os.fork() == 0:\n"
        "        touch(); os.write(1, b'\\n'); sys.stdin.read(); os._exit(0)\n"
    )
    child = start(shared + forks)
    for _ in range(3):
        _pipe(child.stdout).readline()
    alone = start(shared.replace("32 <<", "0 or 1 <<"))
    found = proc.tree(child.pid)
    estimate = proc.memory_estimate(child.pid) - 4 * proc.memory_estimate(alone.pid)
    assert 26 * MIB <= estimate < 40 * MIB
    proc.kill_tree(found)
    proc.wait_dead(found, 5)


def _inode(sock: socket.socket) -> int:
    return os.fstat(sock.fileno()).st_ino


def test_sockets(start: Start) -> None:
    shared, kept = socket.socketpair()
    with shared, kept:
        child = start(
            "import socket\nown = socket.socket()",
            pass_fds=(shared.fileno(),),
        )
        other = start("import socket\nown = socket.socket()")
        inodes = proc.own_socket_inodes(child.pid)
        assert len(inodes) == 1
        assert _inode(shared) not in inodes
        assert proc.socket_holders(inodes) == [child.pid]
        assert proc.socket_holders({_inode(shared)}) == sorted([os.getpid(), child.pid])
        assert proc.socket_holders({_inode(kept)}) == [os.getpid()]
        assert proc.own_socket_inodes(other.pid).isdisjoint(inodes)
        assert proc.socket_holders(set()) == []


def test_scans_survive_processes_that_come_and_go(start: Start) -> None:
    """A child forks and reaps as fast as it can while the scans run."""
    child = start(
        "import threading\n"
        "def churn():\n"
        "    while True:\n"
        "        pid = os.fork()\n"
        "        if pid == 0: os._exit(0)\n"
        "        os.waitpid(pid, 0)\n"
        "threading.Thread(target=churn, daemon=True).start()",
    )
    for _ in range(100):
        assert proc.tree(child.pid)[0].pid == child.pid
        assert proc.memory_estimate(child.pid) > 0
        assert proc.own_socket_inodes(child.pid) == set()
    assert proc.is_alive(proc.identify(child.pid))


@pytest.mark.parametrize("stopped", [False, True])
def test_a_killed_process_is_doomed(start: Start, stopped: bool) -> None:
    child = start("import threading\nthreading.Thread(target=sys.stdin.read, daemon=True).start()")
    process = proc.identify(child.pid)
    with pytest.raises(TimeoutError, match=f"process {child.pid} still lives"):
        proc.wait_doomed([process], 0.05)
    if stopped:
        os.kill(child.pid, signal.SIGSTOP)
    proc.kill_tree([process])
    proc.wait_doomed([process], 10)
    proc.wait_dead([process], 10)
    proc.wait_doomed([process], 10)
