"""A Redis server with threads goes from this machine, x86-64, to a guest on aarch64, with all that it holds, and comes
back: it has the data of one that never moved, and serves on both.

Minutes, most of which build Redis: run with IMGPROXY_PROGRAMS=all.
"""

import os
import shutil
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.nodes import Node, open_nodes, start_cache, until
from tests.programs import Programs
from tests.testbed.guest import guest
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.there import There
from tests.toolchain import redis
from tests.toolchain.pairs import PROGRAMS, output

pytestmark = pytest.mark.t3

WORKLOAD = (PROGRAMS / "redis/workload.txt").read_bytes()
#: What is done there, and what after it here: a key that expires, a child process that writes the file.
THERE = "EVAL \"for i = 1, 500 do redis.call('INCRBYFLOAT', 'there:' .. i % 7, i / 8) end\" 0\nDEL biglist\nSAVE\n"
HERE = "EVAL \"for i = 1, 500 do redis.call('LPUSH', 'here', i) end\" 0\nDEBUG RELOAD\n"


class Moving:
    """The server, wherever it is."""

    def __init__(self, there: There, programs: redis.Programs, place: Path) -> None:
        self._there, self._programs, self.socket = there, programs, place / "socket"

    def ask(self, lines: str) -> str:
        """Here; the answers."""
        return output(*self._programs.client, "-s", self.socket, stdin=lines.encode()).decode(errors="replace")

    async def ask_there(self, lines: str) -> str:
        """In the guest."""
        client = ("/run/redis-cli", "-s", self.socket)
        return (await self._there.vm.run(*client, stdin=lines.encode(), deadline=PATIENCE)).stdout


def servers(node: Node) -> list[int]:
    """By their pids here. Its title is of its own, so it is known by its executable."""
    found = []
    for pid in node.processes():
        with suppress(FileNotFoundError):
            if Path(f"/proc/{pid}/exe").readlink().name == "redis-server":
                found.append(pid)
    return found


def unmoved(programs: redis.Programs, place: Path) -> list[str]:
    """The digests of one that stays: at the beginning, after what is done there, after what is done here."""
    with redis.running(programs, place) as server:
        server.ask_all(WORKLOAD)
        first = server.ask("DEBUG", "DIGEST")
        server.ask_all(THERE.encode())
        second = server.ask("DEBUG", "DIGEST")
        server.ask_all(HERE.encode())
        return [first, second, server.ask("DEBUG", "DIGEST")]


async def test_there_and_back_with_its_data(
    programs: Programs, make_node_dir: Callable[[], Path], criu_latest: Path, tmp_path: Path
) -> None:
    built, pair, place = redis.pair(tmp_path / "built"), tmp_path / "pair", make_node_dir()
    shutil.copytree(built, pair, ignore=shutil.ignore_patterns("redis-cli*", "redis-benchmark*"))
    native = redis.of_pair(built)[0]
    expected = unmoved(native, tmp_path / "unmoved")
    async with guest("arm64") as vm, open_nodes(programs, make_node_dir) as nodes:
        there = There(vm)
        await there.open()
        await there.install(pair, "redis-server")
        await vm.put(built / "bin/redis-cli_aarch64", "/run/redis-cli", 0o755)
        await vm.run("mkdir", "-p", "-m", "700", place)  # as here, which CRIU looks at
        here, other = await nodes.make(), await nodes.make()
        server = Moving(there, native, place)
        # The libc maps the file of the time zone, which would be needed there, too.
        words = ["env", "TZ=UTC0", pair / "redis-server", *redis.OPTIONS, "--dir", place]
        pid = await nodes.start_quiet(here, *words, "--unixsocket", server.socket)
        await until(server.socket.exists, "the server to listen")
        server.ask(WORKLOAD.decode())
        digests = [server.ask("DEBUG DIGEST\n")]

        await there.bring(here, pid, criu_latest, pair)
        assert not servers(here)
        await server.ask_there(THERE)
        digests.append(await server.ask_there("DEBUG DIGEST\n"))
        assert "arch_bits:64" in await server.ask_there("INFO server\n")

        await there.bring_back(pid, await start_cache(other, "--allow-restore", criu=criu_latest), pair)
        server.ask(HERE)
        digests.append(server.ask("DEBUG DIGEST\n"))
        assert [digest.strip() for digest in digests] == expected
        (inside,) = servers(other)
        os.kill(inside, signal.SIGTERM)
        await until(lambda: not servers(other), "it to end")
