"""Post-copy where `criu dump` itself serves the memory: root in a guest may have pipes as large as that needs."""

import json

import pytest

from tests.programs import Programs
from tests.testbed.guest import guest
from tests.testbed.test_guests import CACHE, EMULATED, LISTEN, other_pids, start
from tests.testbed.test_near_live import SIZE, Tree, of

pytestmark = pytest.mark.t3


async def test_criu_serves_what_follows(programs: Programs) -> None:
    async with guest("amd64") as vm:
        tree = Tree(vm)
        root = await tree.start(programs)
        cache = await start(vm, *await other_pids(vm), "imgcache", "-D", "/run/there", *LISTEN, "--allow-restore")
        done = await vm.run("imgproxy", "migrate", root, "--to", CACHE, "--lazy", "--json", deadline=4 * EMULATED)
        assert done.code == 0, done.output + cache.stderr
        await tree.verify()
        (summary,) = of([json.loads(line) for line in done.stdout.splitlines()], "summary")
        assert summary["bytes_by_kind"]["pages-following"] > 2 * SIZE
        log = (await vm.run("cat", "/var/lib/imgproxy/dump.log")).stdout
        assert "Lazy pages transfer FAILED" not in log
        assert "criu is gone" not in done.stderr
