"""A change of ISA in flight: pages are neither held nor sent twice, by a trace of all that leaves the program."""

import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.nodes import Node, Nodes, Program, open_nodes, start_cache, until
from tests.programs import Programs
from tests.toolchain.pairs import output

pytestmark = pytest.mark.t2

SOURCE = Path(__file__).parent.parent.parent / "scripts/benchmarks/programs/stacks.c"
SIZE = 128 << 20
#: Bytes that may go out beside the pages.
BESIDE = 1 << 20
#: What can write to a socket, with the kind of descriptor and the result.
SENT = re.compile(r"(?:write|writev|sendto|sendmsg)\(\d+<(?:UNIX|TCP)[^\n]* = (?P<written>\d+)$", re.MULTILINE)
SPLICED = re.compile(r"splice\(\d+<pipe:[^\n]*, \d+<(?:UNIX|TCP)[^\n]* = (?P<spliced>\d+)$", re.MULTILINE)


@pytest.fixture
async def cache(
    programs: Programs, make_node_dir: Callable[[], Path], criu_latest: Path
) -> AsyncIterator[tuple[Nodes, Node, Program]]:
    async with open_nodes(programs, make_node_dir) as nodes:
        node = await nodes.make()
        yield nodes, node, await start_cache(node, criu=criu_latest)


async def test_pages_are_spliced_once(
    hetcc: Path, cache: tuple[Nodes, Node, Program], criu_latest: Path, tmp_path: Path
) -> None:
    nodes, node, there = cache
    output(hetcc, "-O2", SOURCE, "-o", "stacks", "--layout", tmp_path / "pair", directory=tmp_path)
    images, said = tmp_path / "images", tmp_path / "said"
    images.mkdir()
    script = f'exec "$0" 4 100 {SIZE} >{said}'
    pid = await nodes.start_quiet(node, "sh", "-c", script, tmp_path / "pair/stacks")
    await until(lambda: said.exists() and said.read_text() == "ready\n", "the program to be deep in its frames")
    for command in (["imgproxy", "trap", pid], [criu_latest, "dump", "-t", pid, "-D", images, "-o", "log"]):
        done = await node.run(*command)
        assert done.code == 0, done.output
    trace = tmp_path / "trace"
    send = ["imgproxy", "send", images, "--to", there.address, "--compress", "off"]
    change = ["--arch", "aarch64", "--binaries", tmp_path / "pair"]
    traced = ["strace", "-f", "-qq", "-yy", "-e", "trace=splice,write,writev,sendto,sendmsg", "-o", trace]
    done = await node.run(*traced, *send, *change)
    assert done.code == 0, done.output
    spliced = sum(int(found["spliced"]) for found in SPLICED.finditer(trace.read_text()))
    written = sum(int(found["written"]) for found in SENT.finditer(trace.read_text()))
    pages = sum(path.stat().st_size for path in images.glob("pages-*.img"))
    assert pages > SIZE
    assert spliced >= pages, "they go past the program"
    assert spliced + written < pages + BESIDE, "each once; all else are small images, heads of frames, what was patched"
