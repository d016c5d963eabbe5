"""Nodes and the programs on them.

A node is a pid and a mount namespace: the process that moves finds its pid free at the destination. All nodes share the
network of the benchmark, which has nothing but loopback. A node's first process reaps what is orphaned on it, and
everything on the node dies with that process.
"""

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

#: Seconds for a program to say that it is ready, or for a command to end: a dump of 4 GiB over 1 Gbit/s takes 40.
PATIENCE = 300.0
#: Seconds between two looks at something that has no event to wait for.
LOOK = 0.01
TICK = os.sysconf("SC_CLK_TCK")

_INIT = "echo up; sleep infinity & wait"
_DETACH = 'cd /; exec setsid --fork "$@" </dev/null >/dev/null 2>&1'


class CommandFailed(Exception):
    """A command of the benchmark ended badly; the text says which, and what it said."""


@dataclass(frozen=True)
class Usage:
    """What a process has used: CPU seconds, and bytes of resident memory at most."""

    cpu: float
    peak: int


@dataclass
class Program:
    """A program that runs in the background on a node."""

    popen: "subprocess.Popen[bytes]"
    pid: int  #: as seen from the benchmark
    log: Path
    at_start: Usage = field(default_factory=lambda: Usage(0.0, 0))  #: when it was ready
    ended: Usage | None = None  #: in its whole life

    def note_start(self) -> None:
        """It is ready: note what it has used until now, and forget its peak so far."""
        self.pid = _descendant(self.popen.pid)
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self.at_start = usage(self.pid)

    async def wait(self) -> None:
        """Wait for its end. CommandFailed unless it ended well."""
        with trio.fail_after(PATIENCE):
            _, status, used = await trio.to_thread.run_sync(os.wait4, self.popen.pid, 0, abandon_on_cancel=True)
        self.popen.returncode = os.waitstatus_to_exitcode(status)
        self.ended = Usage(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
        if self.popen.returncode:
            raise CommandFailed(f"{self.popen.args!r}: exit code {self.popen.returncode}: {_tail(self.log)}")

    def used(self) -> Usage:
        """CPU and memory growth since it was ready."""
        now = self.ended or usage(self.pid)
        return Usage(now.cpu - self.at_start.cpu, now.peak - self.at_start.peak)

    def stop(self) -> None:
        """End it, if it has not ended."""
        if self.popen.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.popen.wait()


def usage(pid: int) -> Usage:
    """What a living process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return Usage((int(fields[11]) + int(fields[12])) / TICK, status_bytes(pid, "VmHWM"))


def status_bytes(pid: int, name: str) -> int:
    """A size of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise CommandFailed(f"process {pid} has no {name}")


class Node:
    """See the module's text."""

    def __init__(self, keeper: "subprocess.Popen[bytes]") -> None:
        self._keeper = keeper
        self._init = _children(keeper.pid)[0]
        self.programs: list[Program] = []

    def _inside(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self._init}", "--pid", "--mount", "--", *command]

    async def run(self, *command: str) -> str:
        """Run a command to its end; what it said. CommandFailed with that if it failed."""
        with trio.fail_after(PATIENCE):
            done = await trio.run_process(
                self._inside(command), capture_stdout=True, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode:
            raise CommandFailed(f"{' '.join(command)}: exit code {done.returncode}: {done.stdout.decode()[-2000:]}")
        return done.stdout.decode()

    async def detach(self, *command: str) -> None:
        """Start a command as CRIU wants it: in a session of its own, with nothing open from outside the node."""
        await self.run("bash", "-c", _DETACH, "detach", *command)

    async def set_next_pid(self, pid: int) -> None:
        """The next process here gets a pid above this one."""
        await self.run("bash", "-c", f"echo {pid} >/proc/sys/kernel/ns_last_pid")

    def start(self, log: Path, *command: str, environment: dict[str, str] | None = None) -> Program:
        """Start a command in the background, with what it says in `log`."""
        with log.open("wb") as output:
            popen = subprocess.Popen(
                self._inside(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment and {**os.environ, **environment},
            )
        program = Program(popen, popen.pid, log)
        self.programs.append(program)
        return program

    async def start_service(self, log: Path, *command: str) -> Program:
        """Start a program that tells when it is ready (sd_notify), and wait until it is."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            path = f"{log}.ready"
            ready.bind(path)
            ready.setblocking(False)
            program = self.start(log, *command, environment={"NOTIFY_SOCKET": path})
            with trio.move_on_after(PATIENCE / 10):
                await trio.lowlevel.wait_readable(ready)
                program.note_start()
                return program
        raise CommandFailed(f"{' '.join(command)}: not ready: {_tail(log)}")

    def close(self) -> None:
        """Kill everything on it."""
        self._keeper.kill()
        self._keeper.wait()
        for program in self.programs:
            program.stop()


@asynccontextmanager
async def started_node() -> AsyncIterator[Node]:
    """A fresh node, for as long as the block runs."""
    command = ["unshare", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc", "bash", "-c", _INIT]
    keeper = _start_keeper(command)
    assert keeper.stdout is not None
    with keeper.stdout as says:
        await trio.to_thread.run_sync(says.readline)
        node = Node(keeper)
        try:
            yield node
        finally:
            node.close()


def _start_keeper(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)


async def until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Look at `condition` again and again until it holds. CommandFailed if it takes too long."""
    with trio.move_on_after(patience):
        while True:
            if condition():
                return
            await trio.sleep(LOOK)
    raise CommandFailed(f"{what}: not within {patience:.0f} s")


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _descendant(pid: int) -> int:
    """The program behind nsenter, strace and the like: the last of a chain of single children."""
    while children := _children(pid):
        pid = children[0]
    return pid


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-2000:] if log.exists() else ""
