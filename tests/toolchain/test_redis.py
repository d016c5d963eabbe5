"""Redis: its server with threads, its client and its own tests, as pairs; and beside what cc makes."""

import random
import shutil
import socket
from pathlib import Path

import pytest
import trio

from imgproxy.trap import release, trap
from tests.toolchain.pairs import PROGRAMS, SEED, output, run, unpack, wrapper
from tests.toolchain.redis import IO_THREADS, Programs, Server, by_cc, digests, of_pair, pair, running

pytestmark = [pytest.mark.t2, pytest.mark.usefixtures("hetcc")]

WORKLOAD = (PROGRAMS / "redis/workload.txt").read_bytes()
#: The same without what is in no log of commands, and no replica is told.
REPLICATED = WORKLOAD.replace(b"DEBUG POPULATE", b"#")
#: Some of its own tests, natively; and fewer, emulated, besides the files.
UNITS = (
    *("type/string", "type/list", "type/set", "type/hash", "type/zset", "type/stream", "keyspace", "expire", "scan"),
    *("scripting", "functions", "multi", "pubsub", "sort", "bitops", "bitfield", "hyperloglog", "geo", "dump"),
)
FILES = ("rdb", "aof", "convert-ziplist-hash-on-load", "logging")
EMULATED = ("type/string", "bitops", "multi")
WAIT = 60_000  #: milliseconds for a replica to have all
TRAPS = 20
DEADLINE = 60.0  # seconds for what takes milliseconds


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pair(tmp_path_factory.mktemp("redis") / "pair")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return by_cc(tmp_path_factory.mktemp("redis") / "reference")


def test_the_same_answers(redis: Path, reference: Programs, tmp_path: Path) -> None:
    """In memory, and after files were written and read; each ISA's file is read by the other, and by what cc makes."""
    answers = []
    everybody = [reference, *of_pair(redis)]
    for number, programs in enumerate(everybody):
        with running(programs, tmp_path / str(number)) as server:
            answers.append(server.ask_all(WORKLOAD))
    assert answers[0] == answers[1] == answers[2]
    before, after = digests(answers[0])
    assert before == after
    for number, programs in enumerate([*everybody[1:], reference]):
        with running(programs, tmp_path / str(number)) as server:
            assert server.ask("DEBUG", "DIGEST") == after.decode()


def test_a_log_of_commands(redis: Path, tmp_path: Path) -> None:
    """Written by one ISA, also anew by a child process, read by the other."""
    logging = ("--appendonly", "yes", "--aof-use-rdb-preamble", "no")
    answers = []
    for programs in of_pair(redis):
        with running(programs, tmp_path / "log", *logging) as server:
            answers.append(server.ask("DEBUG", "DIGEST"))
            if len(answers) == 1:
                server.ask_all(REPLICATED)
                assert "started" in server.ask("BGREWRITEAOF")
                server.ask("EVAL", "for i = 1, 1000 do redis.call('INCR', 'counter') end", 0)
                while "aof_rewrite_in_progress:1" in server.ask("INFO", "persistence"):
                    pass
                answers = [server.ask("DEBUG", "DIGEST")]
    assert answers[0] == answers[1] != "0" * 40


@pytest.mark.parametrize("disk", ["no", "yes"])
@pytest.mark.parametrize("order", [1, -1], ids=["to aarch64", "to x86-64"])
def test_a_replica(redis: Path, tmp_path: Path, order: int, disk: str) -> None:
    """On the other ISA it has its master's data: from the first copy on, and after it was cut off and is back.

    `disk`: the first copy is written to a file, or sent as it is made.
    """
    master, replica = of_pair(redis)[::order]
    port = unused_port()
    listening = ("--port", str(port), "--repl-diskless-sync-delay", "0", "--repl-diskless-sync", disk)
    following = ("--replicaof", f"127.0.0.1 {port}")
    with running(master, tmp_path / "m", *listening) as first:
        first.ask_all(WORKLOAD)
        with running(replica, tmp_path / "r", *following) as second:
            assert_the_same(first, second)
            assert "READONLY" in second.ask("SET", "a", "b")
            first.ask_all(REPLICATED)
            assert_the_same(first, second)
            first.ask("CLIENT", "KILL", "TYPE", "replica")
            first.ask("EVAL", "for i = 1, 1000 do redis.call('INCRBYFLOAT', 'counter:' .. i % 7, i / 8) end", 0)
            assert_the_same(first, second)
            assert "master_link_status:up" in second.ask("INFO", "replication")


def assert_the_same(master: Server, replica: Server) -> None:
    """When all that the master was told has come to its replica."""
    assert master.ask_all(f"INCR waited\nWAIT 1 {WAIT}\n".encode()).split()[1] == b"1"
    assert master.ask("DEBUG", "DIGEST") == replica.ask("DEBUG", "DIGEST") != "0" * 40


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture(scope="module")
def tcl() -> None:
    if not shutil.which("tclsh8.6"):
        output("apt-get", "install", "-y", "-qq", "tcl8.6")


def its_own_tests(programs: Programs, place: Path, units: list[str]) -> None:
    source = unpack("redis", place, "--debian")
    benchmark = [*programs.server[:-1], programs.server[-1].replace("server", "benchmark")]
    commands = {"server": programs.server, "cli": programs.client, "benchmark": benchmark}
    for name, words in commands.items():
        wrapper(words, source / f"src/redis-{name}")
    for name in ("check-aof", "check-rdb"):  # the server, if it is called so
        command = source / f"src/redis-{name}"
        if len(programs.server) == 1:
            shutil.copy(programs.server[0], command)
        else:
            wrapper([programs.server[0], "-0", str(command), programs.server[1]], command)
    chosen = [word for unit in units for word in ("--single", unit)]
    done = run(source / "runtest", "--clients", 2, "--ignore-encoding", *chosen, directory=source)
    assert b"All tests passed without errors" in done.stdout, done.stdout[-8000:].decode(errors="replace")


@pytest.mark.usefixtures("tcl")
def test_its_own_tests(redis: Path, tmp_path: Path) -> None:
    units = [*(f"unit/{name}" for name in UNITS), *(f"integration/{name}" for name in FILES)]
    its_own_tests(of_pair(redis)[0], tmp_path / "source", units)


@pytest.mark.usefixtures("tcl")
def test_its_own_tests_emulated(redis: Path, tmp_path: Path) -> None:
    units = [*(f"unit/{name}" for name in EMULATED), *(f"integration/{name}" for name in FILES)]
    its_own_tests(of_pair(redis)[1], tmp_path / "source", units)


async def test_stopped_while_it_serves(redis: Path, tmp_path: Path) -> None:
    """Again and again, with all its threads at points; clients wait that long, and get every answer."""
    moments = random.Random(SEED)
    with running(of_pair(redis)[0], tmp_path / "stopped") as server:
        words = [redis / "redis-benchmark", "-s", server.socket, "-n", 100_000, "-c", 20, "-t", "incr", "-q"]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, output, *words)
            for _ in range(TRAPS):
                await trio.sleep(moments.random() * 0.1)
                async with trap(server.process.pid, DEADLINE) as stopped:
                    assert len(stopped.points) == 1 + 3 + IO_THREADS - 1
                release(server.process.pid)
        assert int(server.ask("GET", "counter:__rand_int__")) == 100_000
