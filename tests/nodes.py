"""Nodes on one machine: each with its own pids and /proc, its own /run, and its own network if asked for.

A node is a pid and mount namespace that lives as long as its init, which buries whatever becomes an orphan in it (all
that CRIU restores does). Programs are started into it as children of the test, so that signals and exit codes are
theirs; what they write to stderr is read as it comes, and tests wait for it with a deadline. Each node hands out pids
of its own range: a process keeps its pid through a migration, so nobody else may have it at the destination.

    async with open_nodes(programs, make_node_dir) as nodes:
        a, b = await nodes.make(), await nodes.make()
        check = await nodes.start_memcheck(a, size=1 << 20)
        cache = await start_cache(b, "--allow-restore", criu=criu)
        done = await a.run("imgproxy", "migrate", check.pid, "--to", cache.address, "--criu", criu)
"""

import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import IO, Any, TypeVar

import trio

from tests.programs import Programs
from tests.programs.selfcheck import SelfCheck, kill_and_wait

BIN = Path(sys.executable).parent
CLONE_NEWPID = 0x20000000
#: Pids that one node hands out before it would reach those of the next.
PID_RANGE = 3000
DYING = 20.0  # seconds for processes that have been told to end, or killed
DEADLINE = 90.0  # seconds for anything that a test waits for, on a machine with too much to do

#: The node's init: the kernel buries orphans for it. Its line says that the node is ready; it ends with the test.
INIT = """
import signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print("up", flush=True)
sys.stdin.read()
"""

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Ended:
    """A program that was run to its end."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """Both, for messages."""
        return self.stdout + self.stderr


class Program:
    """A program that runs in a node. `pid` is its pid here, not in the node."""

    def __init__(self, node: "Node", command: Sequence[str], process: "subprocess.Popen[bytes]") -> None:
        self.node, self.command, self._process = node, command, process
        self.pid = process.pid
        self.address = ""  #: of a cache: what to give to --to
        self._ended = trio.Event()
        self._news = trio.Condition()
        assert process.stdout and process.stderr
        self._pipes = {"stdout": process.stdout, "stderr": process.stderr}
        self._texts = {name: bytearray() for name in self._pipes}

    @property
    def code(self) -> int | None:
        """The exit code; minus the signal's number if one ended it; None while it runs."""
        return self._process.returncode

    @property
    def stdout(self) -> str:
        """What it has written so far."""
        return self._texts["stdout"].decode(errors="replace")

    @property
    def stderr(self) -> str:
        """What it has written so far."""
        return self._texts["stderr"].decode(errors="replace")

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its log so far: the lines of stderr that are JSON objects."""
        return [json.loads(line) for line in self.stderr.splitlines() if line.startswith("{") and line.endswith("}")]

    @property
    def dead(self) -> bool:
        """Whether it has ended and its exit code is known."""
        return self._ended.is_set()

    def signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self._process.returncode is None:
            os.kill(self.pid, number)

    async def wait(self, deadline: float = DEADLINE) -> int:
        """Wait for its end; the exit code. AssertionError after `deadline` seconds."""
        with trio.move_on_after(deadline):
            await self._ended.wait()
            assert self.code is not None
            return self.code
        raise AssertionError(f"{self} has not ended within {deadline} s; it wrote: {self.stdout}{self.stderr}")

    async def ended(self, deadline: float = DEADLINE) -> Ended:
        """Wait for its end and for the last of its output."""
        return Ended(await self.wait(deadline), self.stdout, self.stderr)

    async def stop(self, deadline: float = DEADLINE) -> int:
        """SIGTERM, and wait for the end it comes to."""
        self.signal(signal.SIGTERM)
        return await self.wait(deadline)

    async def kill9(self) -> None:
        """SIGKILL, and wait until it is dead."""
        self.signal(signal.SIGKILL)
        await self.wait()

    async def wait_log(self, event: str, deadline: float = DEADLINE, **fields: object) -> dict[str, Any]:
        """Wait for a line of its log with this event and these fields."""

        def find() -> dict[str, Any] | None:
            lines = (line for line in self.log if line.get("event") == event)
            return next((line for line in lines if fields.items() <= line.items()), None)

        return await self.wait_for(find, f"to log {event!r} {fields or ''}", deadline)

    async def wait_stderr(self, text: str, deadline: float = DEADLINE) -> None:
        """Wait until it has written this to stderr."""
        await self.wait_for(lambda: text in self.stderr or None, f"to say {text!r}", deadline)

    async def wait_for(self, find: Callable[[], T | None], what: str, deadline: float = DEADLINE) -> T:
        """Wait until its output gives `find` a result."""
        with trio.move_on_after(deadline):
            async with self._news:
                while (found := find()) is None and not self._ended.is_set():
                    await self._news.wait()
            found = find()
            if found is not None:
                return found
        raise AssertionError(f"{self}: {what}, not within {deadline} s; exit code {self.code}; {self.stderr}")

    async def follow(self) -> None:
        """Read its output until it ends."""
        try:
            async with trio.open_nursery() as nursery:
                for name, pipe in self._pipes.items():
                    nursery.start_soon(self._read, name, pipe)
                nursery.start_soon(self._wait_end, nursery.cancel_scope)
        finally:
            for pipe in self._pipes.values():
                pipe.close()
        self._ended.set()
        async with self._news:
            self._news.notify_all()

    async def _wait_end(self, readers: trio.CancelScope) -> None:
        death = os.pidfd_open(self.pid)
        try:
            await trio.lowlevel.wait_readable(death)
        finally:
            os.close(death)
        self._process.wait()
        for name, pipe in self._pipes.items():
            while self._take(name, pipe):
                pass
        readers.cancel()  # whoever inherited its output may live on

    async def _read(self, name: str, pipe: IO[bytes]) -> None:
        os.set_blocking(pipe.fileno(), False)
        more = True
        while more:
            await trio.lowlevel.wait_readable(pipe)
            more = self._take(name, pipe)
            async with self._news:
                self._news.notify_all()

    def _take(self, name: str, pipe: IO[bytes]) -> bool:
        try:
            data = os.read(pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return False
        self._texts[name] += data
        return bool(data)

    def bury(self) -> None:
        """Kill it, whatever it does, and take its exit code."""
        if self._process.returncode is None:
            kill_and_wait(self.pid)
            self._process.wait()

    def __str__(self) -> str:
        return " ".join([Path(self.command[0]).name, *self.command[1:3]])


class Node:
    """One node. `directory` is its images directory, on tmpfs and seen by all nodes under this path."""

    def __init__(self, directory: Path, tasks: trio.Nursery, number: int, *, network: bool) -> None:
        self.directory, self.number, self.network = directory, number, network
        self.environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "COLUMNS": "200"}
        self._tasks = tasks
        self._programs: list[Program] = []
        namespaces = ["--pid", "--fork", "--mount", "--mount-proc", "--kill-child", *(["--net"] if network else [])]
        prepare = (
            f"mount -t tmpfs -o mode=755 run /run && echo {number * PID_RANGE} >/proc/sys/kernel/ns_last_pid"
            + (" && ip link set lo up" if network else "")
            + ' && exec "$0" -S -c "$1"'
        )
        command = ["unshare", *namespaces, "--", "sh", "-c", prepare, sys.executable, INIT]
        pipe = subprocess.PIPE
        self._unshare = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe)
        assert self._unshare.stdout
        assert self._unshare.stdout.readline() == b"up\n", "a node could not be made"
        self.init = int(Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text())

    def start(self, *command: object, pass_fds: Sequence[int] = (), cwd: Path | None = None) -> Program:
        """Start a program in the node."""
        words = [str(word) for word in command]
        with self.pids():
            process = subprocess.Popen(
                [*self.enter(), *words],
                env=self.environment,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=pass_fds,
            )
        program = Program(self, words, process)
        self._programs.append(program)
        self._tasks.start_soon(program.follow)
        return program

    async def run(self, *command: object, deadline: float = DEADLINE, pass_fds: Sequence[int] = ()) -> Ended:
        """Run a program in the node to its end."""
        return await self.start(*command, pass_fds=pass_fds).ended(deadline)

    def enter(self) -> list[str]:
        """Words before a command that put it into the node, but for its pid: see `pids`."""
        places = [f"--mount=/proc/{self.init}/ns/mnt", *([f"--net=/proc/{self.init}/ns/net"] if self.network else [])]
        return ["nsenter", *places, "--"]

    @contextmanager
    def pids(self) -> Iterator[None]:
        """What this thread starts meanwhile gets its pid in the node. No checkpoint inside."""
        _children_get_pids_of(self.init)
        try:
            yield
        finally:
            _children_get_pids_of(os.getpid())

    def processes(self) -> dict[int, str]:
        """What runs in the node beside its init, zombies included: pid here, command line."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(FileNotFoundError, ProcessLookupError):
                if _pid_namespace(process.name) == _pid_namespace(self.init) and not _is_zombie_of_ours(process):
                    found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        found.pop(self.init, None)
        return found

    async def empty(self) -> None:
        """See it empty: the last process may take a moment to die."""
        await until(lambda: not self.processes(), f"node {self.number} to be empty: {self.processes()}", DYING)

    def told(self) -> list[str]:
        """What runs in the node and what its programs wrote to stderr: for the report of a failure."""
        running = [f"node {self.number} runs {pid}: {command}" for pid, command in self.processes().items()]
        return running + [f"{program}: {line}" for program in self._programs for line in program.stderr.splitlines()]

    def path(self, path: str | Path) -> Path:
        """Where a path of the node is found from here: its /run is its own."""
        return Path(f"/proc/{self.init}/root{path}")

    def files(self) -> set[str]:
        """All that is in the images directory, relative to it."""
        return {str(path.relative_to(self.directory)) for path in self.directory.rglob("*")}

    def bury_programs(self) -> None:
        """Kill the programs that were started in it, and take their exit codes."""
        for program in self._programs:
            program.bury()

    def end(self) -> None:
        """Kill all that runs in it, and see it gone."""
        namespace = _pid_namespace(self.init)
        kill_and_wait(self.init)
        self._unshare.communicate()
        left = [path for path in Path("/proc").glob("[0-9]*") if _pid_namespace(path.name) == namespace]
        assert not left, f"processes left in a node that has ended: {left}"


class Nodes:
    """All nodes of a test, and the self-checking processes on them."""

    def __init__(self, programs: Programs, make_node_dir: Callable[[], Path], tasks: trio.Nursery) -> None:
        self.programs, self.make_node_dir = programs, make_node_dir
        self._tasks = tasks
        self._numbers = count(1)
        self._nodes: list[Node] = []
        self._checks: list[SelfCheck] = []

    async def make(self, *, network: bool = False) -> Node:
        """A new node; `network`: with a network of its own, where only loopback is, until `join`."""
        node = Node(self.make_node_dir(), self._tasks, next(self._numbers), network=network)
        self._nodes.append(node)
        await trio.lowlevel.checkpoint()
        return node

    async def join(self, a: Node, b: Node) -> tuple[str, str]:
        """Lay a cable between two nodes with networks of their own; their addresses."""
        ends = []
        await _run(
            "ip", "link", "add", "eth0", "netns", a.init, "type", "veth", "peer", "name", "eth0", "netns", b.init
        )
        for node in (a, b):
            address = f"10.77.0.{node.number}"
            inside = ["nsenter", f"--net=/proc/{node.init}/ns/net", "ip"]
            await _run(*inside, "address", "add", f"{address}/24", "dev", "eth0")
            await _run(*inside, "link", "set", "eth0", "up")
            ends.append(address)
        return ends[0], ends[1]

    async def start_memcheck(
        self,
        node: Node,
        *,
        size: int = 1 << 20,
        threads: int = 1,
        procs: int = 1,
        compressible: int = 0,
        listen: int | None = None,
        program: Path | None = None,
    ) -> SelfCheck:
        """Start a self-checking tree in the node; `check.pid` is its root's pid there. `program`: a copy of it."""
        directory = self.make_node_dir()
        reaper = directory / "reaper"
        reaper.write_text(f'#!/bin/sh\nexec {" ".join(node.enter())} {self.programs.reaper} "$@"\n')
        reaper.chmod(0o700)
        options = [f"--size={size}", f"--threads={threads}", f"--compressible={compressible}"]
        options += [] if listen is None else [f"--listen={listen}"]
        programs = replace(self.programs, reaper=reaper, memcheck=program or self.programs.memcheck)
        with node.pids():
            check = SelfCheck(programs, directory, options, procs)
        self._checks.append(check)
        await check.wait_ready()
        return check

    async def start_quiet(self, node: Node, *command: object) -> int:
        """Start any program as CRIU likes it, in a session of its own, on /dev/null; its pid in the node."""
        pid = self.make_node_dir() / "pid"
        quiet = f'echo $$ >{pid}.new; mv {pid}.new {pid}; exec "$@" </dev/null >/dev/null 2>&1'
        started = await node.run("setsid", "--fork", "sh", "-c", quiet, "sh", *command)
        assert started.code == 0, started.output
        await until(pid.exists, f"{command[0]} to start")
        return int(pid.read_text())

    def end(self) -> None:
        """Kill everything: programs first, since a CRIU may hold processes, which live on when it lets them go."""
        with ExitStack() as ending:
            for node in self._nodes:
                ending.callback(node.end)
            for check in self._checks:
                ending.callback(check.kill)
            for node in self._nodes:
                ending.callback(node.bury_programs)


@asynccontextmanager
async def open_nodes(programs: Programs, make_node_dir: Callable[[], Path]) -> AsyncIterator[Nodes]:
    """Nodes for one test; all that runs on them is killed at the end."""
    async with trio.open_nursery() as tasks:
        nodes = Nodes(programs, make_node_dir, tasks)
        try:
            yield nodes
        finally:
            nodes.end()
            tasks.cancel_scope.cancel()


async def start_cache(
    node: Node,
    *options: object,
    listen: str | None = "127.0.0.1:0",
    criu: Path | None = None,
    directory: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> Program:
    """Start `imgcache` in a node and wait until it is ready; its `address` is for --to."""
    words = ["--listen", listen] if listen else []
    words += ["--criu", str(criu)] if criu else []
    cache = node.start("imgcache", "-D", directory or node.directory, *words, *options, pass_fds=pass_fds)
    ready = await cache.wait_log("ready")
    cache.address = ready["listening"][0] if ready["listening"] else ""
    return cache


async def start_proxy(
    node: Node, to: str, *options: object, directory: Path | None = None, pass_fds: Sequence[int] = ()
) -> Program:
    """Start `imgproxy` for one `criu dump` in a node and wait until it is ready for it."""
    proxy = node.start("imgproxy", "-D", directory or node.directory, "--to", to, *options, pass_fds=pass_fds)
    await proxy.wait_log("ready")
    return proxy


def dump(node: Node, criu: Path, pid: int, *options: object, hook: bool = True) -> Program:
    """Start `criu dump --stream` as a user does; its log is dump.log in the images directory."""
    script = ["--action-script", node.directory / "imgproxy-hook"] if hook else []
    return node.start(criu, "dump", "--stream", "-D", node.directory, "-t", pid, "-o", "dump.log", *script, *options)


def restore(
    node: Node, criu: Path, *options: object, hook: bool = True, directory: Path | None = None, log: str = "restore.log"
) -> Program:
    """Start `criu restore --stream` as a user does; `directory` names that of one session."""
    script = ["--action-script", node.directory / "imgcache-hook"] if hook else []
    images = directory or node.directory
    return node.start(criu, "restore", "--stream", "-D", images, "-d", "-o", log, *script, *options)


async def migrate(node: Node, pid: int, to: str, criu: Path, *options: object, deadline: float = DEADLINE) -> Ended:
    """Run `imgproxy migrate` in a node to its end."""
    return await start_migrate(node, pid, to, criu, *options).ended(deadline)


def start_migrate(node: Node, pid: int, to: str, criu: Path, *options: object) -> Program:
    """Start `imgproxy migrate`; its journal is in the node's images directory."""
    journal = node.directory / "migrations"
    return node.start("imgproxy", "migrate", pid, "--to", to, "--criu", criu, "--journal", journal, *options)


def summary(ended: Ended) -> dict[str, Any]:
    """The last line of `imgproxy migrate --json`."""
    found: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    assert found["event"] == "summary"
    return found


async def assert_runs(check: SelfCheck, node: Node) -> None:
    """The whole tree runs in this node and nowhere else, its memory is right, and it never ran twice."""
    await check.wait_progress()
    await check.verify_memory()
    check.assert_single_history()
    where = {_pid_namespace(pid) for pid in check.pids()}
    assert where == {_pid_namespace(node.init)}, f"not in that node, or not only there: {check.pids()}"
    assert len(check.pids()) == check.procs


async def until(condition: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Wait for something that the kernel tells nobody about, such as a file to appear."""
    with trio.move_on_after(deadline):
        while True:
            if condition():
                return
            await trio.sleep(0.005)
    raise AssertionError(f"{what}: not within {deadline} s")


async def _run(*command: object) -> None:
    await trio.run_process([str(word) for word in command])


def _children_get_pids_of(pid: int) -> None:
    namespace = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(namespace, CLONE_NEWPID) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), f"setns of {pid}")
    finally:
        os.close(namespace)


def _is_zombie_of_ours(process: Path) -> bool:
    """Whether it has ended and only this process has not asked for its exit code yet."""
    state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
    return state == "Z" and int(parent) == os.getpid()


def _pid_namespace(pid: int | str) -> str:
    """Which one a process is in; "" if it is gone."""
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
