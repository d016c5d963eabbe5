"""`imgproxy --rounds`: pre-dumps and a dump that a user types, with the options of `imgproxy rounds`.

This machine's kernel does not track changes of memory, so the pre-dumps are those of a fake CRIU, whose pages nobody
needs: the dump, done by the real one through our page server, has everything. Real pre-dumps: tests/testbed.
"""

import socket
import sys
from pathlib import Path

import pytest

from imgproxy.commands.rounds import UNKNOWN_TO_CRIU
from tests.fake_rounds import planned, runs, told, value
from tests.integration.criu_death import stand_safely
from tests.nodes import Node, Nodes, Program, assert_runs, restore, start_cache, until

pytestmark = pytest.mark.t2

NOBODY = 65534


async def start_rounds(node: Node, to: str, *options: object) -> Program:
    """Start `imgproxy --rounds` and wait until it is ready."""
    proxy = node.start("imgproxy", "--rounds", "-D", node.directory, "--to", to, *options)
    await proxy.wait_log("ready")
    return proxy


async def options(node: Node, *more: object) -> list[str]:
    """What `imgproxy rounds` prints."""
    done = await node.run("imgproxy", "rounds", "-D", node.directory, *more)
    assert done.code == 0, done.output
    assert len(done.stdout.splitlines()) == 1
    return done.stdout.split()


async def pre_dump(node: Node, criu: Path, pid: int) -> int:
    """One more round; CRIU's exit code."""
    return (await node.run(criu, "pre-dump", "-t", pid, *await options(node))).code


async def start_dump(node: Node, criu: Path, pid: int, *more: object) -> Program:
    return node.start(criu, "dump", "-t", pid, *await options(node, "--last"), "-o", "dump.log", *more)


async def hand_over(a: Node, b: Node, proxy: Program, criu: Path, pid: int, *more: object) -> None:
    """The last round, and the restore: all goes well."""
    restoring = restore(b, criu)
    dumping = await start_dump(a, criu, pid, *more)
    assert await dumping.wait() == 0, dumping.stderr
    done = await proxy.ended()
    assert done.code == 0, done.output
    assert done.stdout.startswith("committed\n")
    assert await restoring.wait() == 0


async def test_two_pre_dumps_and_a_dump(nodes: Nodes, a: Node, b: Node, criu: Path, node_dir: Path) -> None:
    check = await nodes.start_memcheck(a, size=4 << 20, procs=2, threads=2)
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address)
    command = planned(node_dir, criu, "good")
    first = await options(a)
    assert value(first, "-D") == f"{a.directory}/1" and "--prev-images-dir" not in first
    assert await options(a) == first, "as often as it is asked"
    assert await options(a, "--last") == [*first, "--action-script", f"{a.directory}/imgproxy-hook"]
    assert await pre_dump(a, command, check.pid) == 0
    await proxy.wait_log("round 1 is at the cache")
    assert await pre_dump(a, command, check.pid) == 0
    told = await a.run("imgproxy", "rounds", "-D", a.directory)
    assert "imgproxy: round 2 carried " in told.stderr and "would freeze the process for about" in told.stderr
    assert value(told.stdout.split(), "--prev-images-dir") == "../2"
    await hand_over(a, b, proxy, command, check.pid)
    parents = [value(words, "--prev-images-dir") for words in runs(node_dir, "pre-dump", "dump")]
    assert parents == [None, "../1", "../2"]
    await assert_runs(check, b)
    assert a.files() <= {"3", "3/dump.log", "3/stats-dump", "journal"}, "nothing of the process is left"
    assert "rounds   " in proxy.stdout


async def test_no_pre_dump_at_all(nodes: Nodes, a: Node, b: Node, criu: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address)
    await hand_over(a, b, proxy, planned(nodes.make_node_dir(), criu), check.pid)
    await assert_runs(check, b)


async def test_again_in_the_same_directory(nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path) -> None:
    """What a user or another session left there stays, and does no harm."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    command = planned(node_dir, criu_latest, "good")
    (a.directory / "7").mkdir()
    (a.directory / "7" / "core-1.img").write_bytes(b"somebody's")
    proxy = await start_rounds(a, cache.address)
    assert await pre_dump(a, command, check.pid) == 0
    assert await proxy.stop() == 128 + 15
    proxy = await start_rounds(a, cache.address)
    assert value(await options(a), "-D") == f"{a.directory}/8", "that of the other session had nothing left in it"
    await hand_over(a, b, proxy, command, check.pid)
    await assert_runs(check, b)
    assert (a.directory / "7" / "core-1.img").read_bytes() == b"somebody's"


REASONS = {
    "fails": "it did not end well",
    "dies": "criu left ",
    "reads": "--pre-dump-mode read",
}


@pytest.mark.parametrize("how", REASONS)
async def test_a_pre_dump_that_fails(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path, how: str
) -> None:
    """Its round is dropped, and the next begins anew."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address)
    command = planned(node_dir, criu_latest, "good", how, "good")
    assert await pre_dump(a, command, check.pid) == 0
    await pre_dump(a, command, check.pid)
    dropped = await proxy.wait_log("round 2 was dropped; the process runs on")
    assert REASONS[how] in dropped["reason"]
    assert "--prev-images-dir" not in await options(a)
    assert await pre_dump(a, command, check.pid) == 0
    assert value(await options(a), "--prev-images-dir") == "../3"
    await hand_over(a, b, proxy, command, check.pid)
    await assert_runs(check, b)


async def test_a_second_criu_while_one_is_at_work(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path
) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address)
    command = planned(node_dir, criu_latest, "holds", "good")
    words = await options(a)
    first = a.start(command, "pre-dump", "-t", check.pid, *words)
    await until(lambda: told(node_dir, "half-way"), "the first")
    asking = a.start("imgproxy", "rounds", "-D", a.directory)
    second = await a.run(command, "pre-dump", "-t", check.pid, *words)
    assert second.code != 0
    assert "one after the other" in (await proxy.wait_log("turned away from the page server"))["reason"]
    assert asking.code is None, "it waits"
    first.signal(9)
    done = await asking.ended()
    assert done.code == 0 and "round 1 was dropped" in done.stderr
    assert value(done.stdout.split(), "-D") == f"{a.directory}/2"
    assert await pre_dump(a, command, check.pid) == 0
    await hand_over(a, b, proxy, command, check.pid)
    await assert_runs(check, b)


async def test_options_of_a_round_that_is_over(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path
) -> None:
    """As when a command line is repeated without asking anew."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address)
    command = planned(node_dir, criu_latest, "good")
    words = await options(a)
    for _ in range(2):
        done = await a.run(command, "pre-dump", "-t", check.pid, *words)
    assert done.code != 0
    reason = (await proxy.wait_log("turned away from the page server"))["reason"]
    assert "has not the -D of this round" in reason and f"imgproxy rounds -D {a.directory}" in reason
    assert value(await options(a), "--prev-images-dir") == "../1", "the round that was good still is"
    await hand_over(a, b, proxy, command, check.pid)
    await assert_runs(check, b)


CONNECT = """
import os, socket, sys
"".encode("idna")
os.setuid(int(sys.argv[1]))
with socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as sock:
    sock.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" * 10)
    try:
        sys.exit(len(sock.recv(1)))
    except ConnectionResetError:
        sys.exit(0)
"""


@pytest.mark.parametrize(("uid", "reason"), [(NOBODY, "belongs to uid 65534"), (0, "has not the -D of this round")])
async def test_somebody_else_connects(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path, uid: int, reason: str
) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address)
    command = planned(node_dir, criu_latest, "good")
    assert await pre_dump(a, command, check.pid) == 0
    port = value(await options(a), "--port")
    assert (await a.run(sys.executable, "-S", "-c", CONNECT, uid, port)).code == 0, "it gets no answer"
    assert reason in (await proxy.wait_log("turned away from the page server"))["reason"]
    assert value(await options(a), "--prev-images-dir") == "../1"
    await hand_over(a, b, proxy, command, check.pid)
    await assert_runs(check, b)


async def test_a_dump_without_the_action_script(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path
) -> None:
    """The answer to its CLOSE would let it kill the process: it gets none, also if its command line tells nothing."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address)
    command = planned(node_dir, criu_latest, "good")
    assert await pre_dump(a, command, check.pid) == 0
    assert (await a.run(command, "dump", "-t", check.pid, *await options(a))).code != 0
    reason = (await proxy.wait_log("turned away from the page server"))["reason"]
    assert f"--action-script {a.directory}/imgproxy-hook" in reason
    assert value(await options(a), "--prev-images-dir") == "../1", "it never came to track anything"
    hidden = await a.run(command, "dump", "-t", check.pid, *await options(a), "-o", "pre-dump")
    assert hidden.code != 0
    await until(lambda: "was dropped; the process runs on" in proxy.stderr, "the round to be dropped")
    assert f"--action-script {a.directory}/imgproxy-hook" in proxy.stderr.splitlines()[-1]
    await assert_runs(check, a)
    assert cache.stderr.count("committed") == 0
    await hand_over(a, b, proxy, command, check.pid)
    await assert_runs(check, b)


async def test_a_dump_that_fails_can_be_tried_again(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path
) -> None:
    """This one has a lock, and CRIU is not told that it may."""
    pid = await nodes.start_quiet(a, "flock", "--no-fork", node_dir / "lock", "sleep", "1000")
    await until(lambda: "sleep 1000 " in a.processes().values(), "the lock to be taken")
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address)
    command = planned(node_dir, criu_latest, "good")
    assert await pre_dump(a, command, pid) == 0
    assert await (await start_dump(a, command, pid)).wait() != 0
    dropped = await proxy.wait_log("round 2 was dropped; the process runs on")
    assert "lock" in dropped["criu"]
    assert "sleep 1000 " in a.processes().values()
    await hand_over(a, b, proxy, command, pid, "--file-locks")
    await until(lambda: "sleep 1000 " in b.processes().values(), "it to run there")


async def test_what_is_printed_when_there_is_nothing_to_print(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path
) -> None:
    """A CRIU that got it ends at once, where one that got nothing would dump, and kill."""
    check = await nodes.start_memcheck(a)
    asked = await a.run("imgproxy", "rounds", "-D", a.directory, "--last")
    assert (asked.code, asked.stdout) == (2, f"{UNKNOWN_TO_CRIU}\n")
    assert f"no imgproxy is at work in {a.directory}" in asked.stderr
    done = await a.run(criu_latest, "dump", "-t", check.pid, "-D", node_dir, asked.stdout.strip())
    assert done.code != 0 and not list(node_dir.iterdir())
    cache = await start_cache(b)
    proxy = a.start("imgproxy", "-D", a.directory, "--to", cache.address)
    await proxy.wait_log("ready")
    asked = await a.run("imgproxy", "rounds", "-D", a.directory)
    assert (asked.code, asked.stdout) == (2, f"{UNKNOWN_TO_CRIU}\n")
    assert "was not started with --rounds" in asked.stderr
    assert await proxy.stop() == 128 + 15
    await assert_runs(check, a)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--remote"], "--rounds: criu --remote has pre-dumps of its own"),
        (["--wire", "criu"], "--rounds: only an imgcache puts rounds together"),
        (["--no-hook"], "--no-hook: a dump after pre-dumps ends in its action script"),
    ],
)
async def test_what_does_not_go_together(a: Node, words: list[str], said: str) -> None:
    done = await a.run("imgproxy", "--rounds", "-D", a.directory, "--to", "127.0.0.1:9", *words)
    assert done.code == 2 and done.stderr.startswith(f"imgproxy: {said}")
    assert len(done.stderr.splitlines()) == 1


async def test_other_ways_to_be_asked_wrongly(a: Node) -> None:
    done = await a.run("imgproxy", "-D", a.directory, "--to", "127.0.0.1:9", "--arch", "aarch64", "--no-hook")
    assert done.code == 2 and "--no-hook: what cannot change ISA" in done.stderr
    done = await a.run("imgproxy", "-D", a.directory, "--to", "127.0.0.1:9", "--page-server-port", 5)
    assert done.code == 2 and "--page-server-port" in done.stderr
    spaced = a.directory / "a directory"
    spaced.mkdir(mode=0o700)
    done = await a.run("imgproxy", "--rounds", "-D", spaced, "--to", "127.0.0.1:9")
    assert done.code == 2 and "a shell would part" in done.stderr


async def test_a_port_that_is_chosen(a: Node, b: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cache = await start_cache(b)
        words = ("imgproxy", "--rounds", "-D", a.directory, "--to", cache.address, "--page-server-port", port)
        done = await a.run(*words)
        assert done.code == 1 and f"127.0.0.1:{port}: Address already in use" in done.stderr
    proxy = await start_rounds(a, cache.address, "--page-server-port", port)
    assert value(await options(a), "--port") == str(port)
    assert await proxy.stop() == 128 + 15


# ---- what dies ----


@pytest.mark.parametrize("how", [9, 15])
async def test_the_proxy_dies_in_a_pre_dump(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path, how: int
) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address, "--session", "mine")
    command = planned(node_dir, criu_latest, "good", "holds")
    assert await pre_dump(a, command, check.pid) == 0
    pre_dumping = a.start(command, "pre-dump", "-t", check.pid, *await options(a))
    await until(lambda: told(node_dir, "half-way"), "the second pre-dump")
    if how == 9:
        await proxy.kill9()
        await until(lambda: told(node_dir, "let-go"), "criu to be let go")
        done = await a.run("imgproxy", "recover", "-D", a.directory, "--patience", 10)
        assert done.stdout == "mine: the process stays here; the cache knows (aborted)\n", done.output
    else:
        assert await proxy.stop() == 128 + 15
        assert "stopped; the process runs on here" in proxy.stderr
    assert await pre_dumping.wait() != 0
    await cache.wait_log("aborted")
    await assert_runs(check, a)


async def test_the_proxy_dies_between_rounds(nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path) -> None:
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address)
    command = planned(node_dir, criu_latest, "good")
    assert await pre_dump(a, command, check.pid) == 0
    words = await options(a, "--last")
    await proxy.kill9()
    assert (await a.run(command, "dump", "-t", check.pid, *words)).code != 0
    await assert_runs(check, a)
    assert (await a.run("imgproxy", "recover", "-D", a.directory, "--patience", 10)).code == 0
    await cache.wait_log("aborted")
    proxy = await start_rounds(a, cache.address)
    await hand_over(a, b, proxy, command, check.pid)
    await assert_runs(check, b)


@pytest.mark.parametrize("victim", ["proxy", "criu", "cache"])
async def test_one_dies_in_the_hand_over(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path, victim: str
) -> None:
    """The dump has brought all, and waits for a restore that does not come."""
    check = await nodes.start_memcheck(a)
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address, "--wait-restored", "--reconnect", 1)
    command = planned(node_dir, criu_latest, "good")
    assert await pre_dump(a, command, check.pid) == 0
    dumping = await start_dump(a, command, check.pid)
    await cache.wait_log("complete")
    if victim == "criu":
        dumping.signal(9)
        done = await proxy.ended()
        assert done.code == 1 and "criu dump was ended while it waited for the destination" in done.stdout
    elif victim == "proxy":
        await proxy.kill9()
        assert await dumping.wait() != 0
    else:
        await cache.kill9()
        assert await dumping.wait() != 0
        assert (await proxy.ended()).code == 1
    await assert_runs(check, a)


async def test_criu_dies_while_it_brings_pages(
    nodes: Nodes, a: Node, b: Node, criu_latest: Path, node_dir: Path
) -> None:
    """The link is held up, so that the dump is in the middle of its pages."""
    check = await nodes.start_memcheck(a, size=32 << 20)
    cache = await start_cache(b)
    proxy = await start_rounds(a, cache.address, "--limit-rate", "4MB", "--compress", "off")
    command = planned(node_dir, criu_latest, "good")
    dumping = await start_dump(a, command, check.pid)
    begun = await proxy.wait_log("round 1 begins")
    assert begun["action"] == "dump"
    await stand_safely(a, check)
    dumping.signal(9)
    dropped = await proxy.wait_log("round 1 was dropped; the process runs on")
    assert dropped["reason"].startswith("criu left ")
    await assert_runs(check, a)
    assert await proxy.stop() == 128 + 15
