"""A process changes its ISA on the way: it starts here, on x86-64, and goes on in a guest on aarch64."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.nodes import migrate, open_nodes
from tests.programs import Programs
from tests.testbed.guest import Guest, guest
from tests.testbed.guest_nodes import PATIENCE
from tests.toolchain.conftest import make_toolchain
from tests.toolchain.pairs import PROGRAMS, output

pytestmark = pytest.mark.t3

#: Half a minute in all, asleep most of the time.
STEPS, NAP = 600, 50


async def put_program(vm: Guest, pair: Path, name: str) -> None:
    """The executable of the guest's ISA, at the place that it has here."""
    assert (await vm.run("mkdir", "-p", pair)).code == 0
    await vm.put(pair / f"bin/{name}_aarch64", str(pair / name), 0o755)


async def test_a_running_process_goes_on_on_the_other_isa(
    programs: Programs, make_node_dir: Callable[[], Path], criu_latest: Path, tmp_path: Path
) -> None:
    pair = tmp_path / "pair"
    output(make_toolchain(), "-O2", PROGRAMS / "steps.c", "-o", "steps", "--layout", pair, directory=tmp_path)
    output(pair / "steps", STEPS, tmp_path / "expected", 0)
    async with guest("arm64") as vm, open_nodes(programs, make_node_dir) as nodes:
        here = await nodes.make()
        await put_program(vm, pair, "steps")
        assert (await vm.run("mkdir", "-m", "700", "/run/there")).code == 0
        listen = ["--listen", "0.0.0.0:7000", "--insecure", "--allow-restore"]
        cache = await vm.start("imgcache", "-D", "/run/there", *listen)
        await cache.wait_stderr('"ready"', PATIENCE)
        address = f"127.0.0.1:{await vm.forward(7000)}"
        pid = await nodes.start_quiet(here, pair / "steps", STEPS, tmp_path / "written", NAP)
        change = ["--arch", "aarch64", "--binaries", pair, "--insecure"]
        done = await migrate(here, pid, address, criu_latest, *change, deadline=PATIENCE)
        assert done.code == 0, done.output + cache.stderr
        assert not (tmp_path / "written").exists(), "it had not ended here"
        wait = 'until test -s "$1"; do sleep 0.1; done; cat "$1"'
        written = await vm.run("sh", "-c", wait, "sh", tmp_path / "written", deadline=PATIENCE)
        assert written.stdout == (tmp_path / "expected").read_text()
