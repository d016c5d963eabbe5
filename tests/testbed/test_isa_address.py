"""As `test_address.py`, but the server goes from this machine, x86-64, to a guest on aarch64, and back."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nodes import migrate, open_nodes, start_cache, until
from tests.programs import Programs
from tests.testbed.guest import Guest, guest
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.lan import HERE, THERE, Lan
from tests.testbed.machine import Hardware
from tests.testbed.served import OPTIONS, TAKE, Served, address_script
from tests.testbed.there import PORT, There
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, output

pytestmark = pytest.mark.t3


async def test_there_and_back(
    programs: Programs, make_node_dir: Callable[[], Path], criu_latest: Path, tmp_path: Path
) -> None:
    pair, moves = tmp_path / "pair", address_script(make_node_dir())
    output(make_toolchain(), "-O2", PROGRAMS / "teller.c", "-o", "teller", "--layout", pair, directory=tmp_path)
    async with open_nodes(programs, make_node_dir) as nodes:
        lan = await Lan.lay(nodes)
        here, options = lan.node, ["--action-script", moves, *OPTIONS]
        with lan.cable() as cable:
            async with guest("arm64", Hardware(lan=cable)) as vm:
                await lan.join(vm)
                there = await open_there(vm, moves, pair)
                listen = ["--allow-restore", "--insecure", "--action-script", moves]
                cache = await start_cache(here, *listen, criu=criu_latest, listen=f"{HERE}:{PORT}")
                served = await Served.start(lan, nodes, pair / "teller")

                assert (await vm.run("sh", "-c", TAKE, served.pid)).code == 0
                change = ["--arch", "aarch64", "--binaries", pair, "--insecure", *options]
                done = await migrate(here, served.pid, there.address, criu_latest, *change, deadline=PATIENCE)
                assert done.code == 1, done.output
                await served.answered()
                assert (await vm.run("kill", served.pid)).code == 0

                await there.bring(here, served.pid, criu_latest, pair, *options)
                await served.answered()
                assert await there.threads(pair / "teller") == [1]
                await there.bring_back(served.pid, cache, pair, *options)
                await served.answered()
                await until(lambda: len(here.processes()) == 2, "the server and the cache to be alone")
                await served.end()


async def open_there(vm: Guest, moves: Path, pair: Path) -> There:
    """The guest, where all is as here."""
    there = There(vm)
    assert (await vm.run("mkdir", "-p", moves.parent)).code == 0
    await vm.put(moves, str(moves), 0o755)
    await there.open("--action-script", moves)
    await there.install(pair, "teller")
    there.address, there.home = f"{THERE}:{PORT}", HERE
    return there
