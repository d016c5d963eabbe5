"""A server goes to another node and back, its address with it; who has a connection to it sees pauses only.

First the restore there fails: then the server has its address here still, and goes on.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nodes import Node, migrate, open_nodes, start_cache
from tests.programs import Programs
from tests.testbed.lan import HERE, THERE, Lan
from tests.testbed.served import OPTIONS, TAKE, Served, address_script
from tests.testbed.there import PORT
from tests.toolchain.pairs import PROGRAMS, output

pytestmark = pytest.mark.t3


async def test_there_and_back(
    programs: Programs, make_node_dir: Callable[[], Path], criu_latest: Path, tmp_path: Path
) -> None:
    server, moves = tmp_path / "teller", address_script(make_node_dir())
    output("gcc", "-O2", PROGRAMS / "teller.c", "-o", server)
    async with open_nodes(programs, make_node_dir) as nodes:
        lan = await Lan.lay(nodes)
        here, there = lan.node, await lan.another(nodes)
        listen = ["--allow-restore", "--insecure", "--action-script", moves]
        caches = {
            node: await start_cache(node, *listen, criu=criu_latest, listen=f"{address}:{PORT}")
            for node, address in ((here, HERE), (there, THERE))
        }
        served = await Served.start(lan, nodes, server)

        async def go(node: Node, to: Node) -> int:
            options = ["--insecure", "--action-script", moves, *OPTIONS]
            done = await migrate(node, served.pid, caches[to].address, criu_latest, *options)
            await served.answered()
            return done.code

        assert (await there.run("sh", "-c", TAKE, served.pid)).code == 0
        assert await go(here, there) == 1
        assert (await there.run("kill", served.pid)).code == 0
        assert await go(here, there) == 0
        assert await go(there, here) == 0
        await served.end()
