"""How a dump by `criu --remote` ends at the proxy: well, by a death, by our action script; and what transforms make of
it.
"""

import os
import socket
import subprocess
from pathlib import Path

import pytest
import trio
import trio.testing

from imgnode.unix import readable
from imgproxy.ingest import remote, remote_run
from tests.fake_remote_criu import MISSING, READ, body, command, entry, exactly, hung_up
from tests.imgproxy.remote_capture import (
    DUMP,
    PRE_DUMP,
    VARIANTS,
    Images,
    bury,
    capturing,
    end_at_once,
    go_on,
    kill_at_once,
    pre_dump,
    run,
    run_at_once,
    says,
    variant_option,
)
from tests.nodes import until
from transform.chain import Chain, EndOfDump
from transform.images.pagemap import PagemapWriter

pytestmark = pytest.mark.t1

# ---- how it ends ----


@VARIANTS
@pytest.mark.parametrize("verb", ["predump", "dump"])
async def test_one_that_is_killed_is_dropped_and_the_next_one_works(node_dir: Path, variant: str, verb: str) -> None:
    async with capturing(node_dir) as capture:
        await pre_dump(capture, "s0", variant)
        name = "core-7.img" if verb == "dump" else "pagemap-7.img"
        killed = await capture.process(
            verb, "s1", "push", f"image:{name}", "half:pages-1.img", "hold", options=variant_option(variant)
        )
        await bury(killed)
        criu = capture.criu("s2", variant)
        await criu.push()
        assert await criu.read(name, "s1") is None, "it went with its round"
        assert await criu.read("pages-1.img", "s0") == PRE_DUMP["pages-1.img"]
        for image, data in DUMP.items():
            await criu.image(image, data)
        await criu.finish()
    assert capture.out.rounds == [("s0", PRE_DUMP), ("s2", DUMP)]
    assert capture.ingest.ended_well


async def test_the_next_one_may_say_more_before_it_is_taken_on(node_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that comes while the round before is looked at is not what that waits for."""
    async with capturing(node_dir) as capture:
        killed = await capture.process("dump", "s1", "push", "hold")
        criu, connected, more = capture.criu("s2"), trio.Event(), list[socket.socket]()

        def look(sock: trio.socket.SocketType) -> bool:
            if capture.ingest._following and not more:
                more.append(criu.connect(entry("core-7.img", "s1", READ)))
                connected.set()
            return readable(sock)

        monkeypatch.setattr(remote, "readable", look)
        kill_at_once(killed)
        criu.push_now()
        await connected.wait()
        with trio.socket.from_stdlib_socket(more[0]) as sock:
            assert await exactly(sock, len(MISSING)) == MISSING
        for name, data in DUMP.items():
            await criu.image(name, data)
        await criu.finish()
        await bury(killed)
    assert capture.out.rounds == [("s2", DUMP)]


async def test_a_pre_dump_that_ends_right_behind_its_last_image_is_whole(node_dir: Path) -> None:
    """Its end may be seen before its last connection is: the round is not dropped."""
    for _ in range(5):
        async with capturing(node_dir) as capture:
            pre_dump = await capture.process("predump", "s0", "push", "image:pages-1.img", "hold", "now:inventory.img")
            await trio.testing.wait_all_tasks_blocked(0.01)
            end_at_once(pre_dump)
            await bury(pre_dump, kill=False)
            await run(capture.criu("s1"), DUMP)
            await capture.criu("s1").finish()
        assert [snapshot for snapshot, _ in capture.out.rounds] == ["s0", "s1"]


async def test_an_image_from_a_child_that_has_ended_already_counts(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        await criu.push()
        await trio.testing.wait_all_tasks_blocked(0.01)
        run_at_once(command("dump", node_dir, "s1", "now:pages-1.img"))
        criu.image_now("inventory.img", b"i")
        criu.finish_now()
        await capture.ended.wait()
    assert capture.out.rounds == [("s1", {"pages-1.img": body("pages-1.img"), "inventory.img": b"i"})]


@VARIANTS
async def test_the_end_of_a_dump_that_failed(node_dir: Path, variant: str) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1", variant)
        await criu.push()
        await criu.image("core-7.img", b"c")
        await criu.finish()
        await capture.ended.wait()
    assert not capture.ingest.complete and not capture.ingest.ended_well


@pytest.mark.parametrize("fate", ["killed", "alive"])
async def test_without_our_script_it_ended_well_if_the_tree_is_dead(
    node_dir: Path, fate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRIU says the end also when it let the tasks go, as when somebody's own post-dump script has failed."""
    monkeypatch.setattr(remote_run, "KILL_TIMEOUT", 0.1)
    async with capturing(node_dir) as capture:
        root = await trio.lowlevel.open_process(["sleep", "infinity"])
        steps = ["push", "image:core-7.img", "image:inventory.img", "hold", "finish", "hold"]
        criu = await capture.process("dump", "s1", *steps, options=("-t", root.pid))
        if fate == "killed":
            root.kill()
        await go_on(criu)
        await capture.ended.wait()
        await bury(criu)
        root.kill()
        await root.wait()
    assert capture.ingest.complete
    assert capture.ingest.ended_well is (fate == "killed")


async def test_without_our_script_one_that_dies_when_the_tree_is_dead_has_ended_well(node_dir: Path) -> None:
    """It was killed between the kill of the tree and its own last word."""
    async with capturing(node_dir) as capture:
        root = await trio.lowlevel.open_process(["sleep", "infinity"])
        steps = ["push", "image:core-7.img", "image:inventory.img", "hold"]
        criu = await capture.process("dump", "s1", *steps, options=("-t", root.pid))
        await capture.until_complete()
        root.kill()
        await root.wait()
        await bury(criu)
        await capture.ended.wait()
    assert capture.ingest.ended_well


async def test_without_our_script_one_that_dies_when_the_tree_lives_is_dropped(
    node_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_run, "KILL_TIMEOUT", 0.1)
    async with capturing(node_dir) as capture:
        root = await trio.lowlevel.open_process(["sleep", "infinity"])
        steps = ["push", "image:core-7.img", "image:inventory.img", "hold"]
        criu = await capture.process("dump", "s1", *steps, options=("-t", root.pid))
        await capture.until_complete()
        await bury(criu)
        await run(capture.criu("s2"), DUMP)
        await capture.criu("s2").finish()
        root.kill()
        await root.wait()
    assert capture.out.rounds == [("s2", DUMP)]


# ---- our action script ----


async def test_the_end_of_a_dump_with_our_script_decides_nothing(node_dir: Path) -> None:
    """Its script has decided, or it failed before."""
    async with capturing(node_dir) as capture:
        capture.announced.add(os.getpid())
        await run(capture.criu("s1"), DUMP)
        await capture.criu("s1").finish()
    assert capture.ingest.complete and not capture.ingest.ended_well


async def test_one_with_our_script_that_dies_ends_it(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        steps = ["push", "hold", "image:core-7.img", "half:pages-1.img", "hold"]
        criu = await capture.process("dump", "s1", *steps)
        capture.announced.add(criu.pid)
        await go_on(criu)
        await says(criu, "holds")
        await bury(criu)
        await capture.ended.wait()
    assert not capture.ingest.complete and not capture.ingest.ended_well


async def test_where_the_script_is_insisted_on_only_pre_dumps_go_without(node_dir: Path) -> None:
    async with capturing(node_dir, insists=True) as capture:
        await pre_dump(capture, "s0")
        criu = capture.criu("s1")
        await criu.push()
        await criu.image("pages-1.img", b"p")
        assert await hung_up(await criu.ask(entry("core-7.img", "s1", 1)))
        await criu.image("inventory.img", b"i")
        await criu.finish()
        await capture.ended.wait()
    assert not capture.ingest.ended_well, "what was refused has not been dumped"


async def test_where_the_script_is_insisted_on_one_that_has_it_goes_through(node_dir: Path) -> None:
    async with capturing(node_dir, insists=True) as capture:
        capture.announced.add(os.getpid())
        await run(capture.criu("s1"), DUMP)
        await capture.criu("s1").finish()
    assert capture.out.rounds == [("s1", DUMP)]


# ---- transforms ----


class Holding:
    """Keeps images of one kind until the end of the dump."""

    name, warnings = "holding", ()

    def __init__(self, kind: str = "core-") -> None:
        self.needs_memory = kind == "pagemap-"
        self._kind = kind
        self._held: Images = {}

    def wants(self, image: str) -> bool:
        return image.startswith(self._kind)

    def transform(self, image: str, data: bytes) -> bytes | None:
        self._held[image] = data
        return None

    def finish(self, dump: EndOfDump) -> Images:
        return {image: data.upper() for image, data in self._held.items()}


async def test_an_image_that_a_transform_holds_is_whole(node_dir: Path) -> None:
    async with capturing(node_dir, chain=Chain([Holding()])) as capture:
        criu = capture.criu("s1")
        await run(criu, DUMP)
        assert await criu.read("core-7.img") is None, "it is not at the cache yet"
        await criu.finish()
    assert capture.ingest.ended_well
    assert capture.out.rounds == [("s1", {name: data for name, data in DUMP.items() if name != "core-7.img"})]


@VARIANTS
async def test_transforms_are_for_the_dump_and_find_what_came_before(node_dir: Path, variant: str) -> None:
    """The pagemaps of pre-dumps pass, and are known."""
    async with capturing(node_dir, chain=Chain([Holding("pagemap-")])) as capture:
        before = [PRE_DUMP | {"pagemap-7.img": PagemapWriter(number).encode()} for number in (1, 2)]
        for number, images in enumerate(before):
            await run(capture.criu(f"s{number}", variant), images)
        criu = capture.criu("s2", variant)
        await run(criu, DUMP | {"pagemap-7.img": PagemapWriter(3).encode()})
        assert await criu.read("pagemap-7.img", "s0") == before[0]["pagemap-7.img"]
        assert await criu.read("pagemap-7.img") is None, "a transform holds it"
        await criu.finish()
    held = {name: data for name, data in DUMP.items() if name != "pagemap-7.img"}
    assert capture.out.rounds == [("s0", before[0]), ("s1", before[1]), ("s2", held)]
    found = capture.sender.earlier_rounds()
    assert [pagemaps["pagemap-7.img"].pages for pagemaps, _ in found] == ["pages-2.img", "pages-1.img"]
    second, first = (images["pages-1.img"].number for _, images in found)
    assert second >= len(PRE_DUMP) > first


async def test_a_dump_that_is_told_too_late_is_refused(node_dir: Path) -> None:
    """What came of it went out as a pre-dump's, past the transforms."""
    async with capturing(node_dir, chain=Chain([Holding("pagemap-")])) as capture:
        criu = capture.criu("s1")
        await criu.push()
        await criu.image("pagemap-7.img", PagemapWriter(1).encode())
        await until(lambda: "pagemap-7.img" in capture.sender.images, "the pagemap to go out")
        assert await hung_up(await criu.ask(entry("core-7.img", "s1", 1)))
        await criu.image("inventory.img", b"i")
        await criu.finish()
    assert not capture.ingest.ended_well


async def test_the_tasks_of_a_dump_are_those_that_criu_traces() -> None:
    """Whoever drives it, and whatever its command line says."""
    task = await trio.lowlevel.open_process(["sleep", "infinity"])
    tracer = await trio.lowlevel.open_process(
        ["strace", "-f", "-o", "/dev/null", "-p", str(task.pid)], stderr=subprocess.PIPE
    )
    assert tracer.stderr is not None
    assert b"attached" in await tracer.stderr.receive_some()
    assert [one.pid for one in remote_run.dumped_by(tracer.pid)] == [task.pid]
    found = remote_run.dumped_by(tracer.pid)
    task.kill()
    await task.wait()
    await tracer.wait()
    await tracer.stderr.aclose()
    assert remote_run.are_gone(found)
    assert remote_run.dumped_by(tracer.pid) == []
