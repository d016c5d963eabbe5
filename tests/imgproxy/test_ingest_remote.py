"""`criu pre-dump --remote` and `criu dump --remote` at the proxy, with a fake CRIU of both variants: what it sends,
what it reads, and who does wrong.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from imgwire.messages import BeginRound
from tests.fake_remote_criu import PROXY, body, command, entry, hung_up
from tests.imgproxy.remote_capture import (
    DUMP,
    PAGES,
    PRE_DUMP,
    VARIANTS,
    bury,
    capturing,
    go_on,
    pre_dump,
    run,
    run_at_once,
    says,
    variant_option,
)

pytestmark = pytest.mark.t1


@VARIANTS
async def test_two_pre_dumps_and_a_dump(node_dir: Path, variant: str) -> None:
    async with capturing(node_dir) as capture:
        for snapshot in ("s0", "s1"):
            await pre_dump(capture, snapshot, variant)
            await capture.until_complete()
            assert capture.ingest.started_at is None, "nothing is frozen yet"
        criu = capture.criu("s2", variant)
        await run(criu, DUMP)
        await criu.finish()
        await capture.ended.wait()
    assert capture.out.rounds == [("s0", PRE_DUMP), ("s1", PRE_DUMP), ("s2", DUMP)]
    assert capture.ingest.complete and capture.ingest.ended_well
    assert capture.ingest.variant == variant
    assert capture.ingest.criu == os.getpid() and capture.ingest.started_at is not None


@VARIANTS
async def test_eight_images_at_once_end_in_any_order(node_dir: Path, variant: str) -> None:
    names = [f"pages-{number}.img" for number in range(7)] + ["inventory.img"]
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1", variant)
        await criu.push()
        await criu.image("core-7.img", b"c")
        streams = [await criu.open(name) for name in names]
        async with trio.open_nursery() as nursery:
            for number, stream in enumerate(streams):
                nursery.start_soon(stream.send_all, PAGES[number:])
        for stream in reversed(streams[1:]):
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not capture.ingest.complete  # the last image has ended, but one that came before it has not
        await criu.finish()
        await streams[0].aclose()
        await capture.ended.wait()
    wanted = {name: PAGES[number:] for number, name in enumerate(names)}
    assert capture.out.rounds == [("s1", {"core-7.img": b"c", **wanted})]
    assert capture.ingest.ended_well


@VARIANTS
async def test_connections_are_taken_in_their_order_whatever_is_scheduled_first(node_dir: Path, variant: str) -> None:
    """All of a dump is said before the proxy gets to run: the push comes first, and what was written last counts."""
    images = {f"core-{number}.img": body(f"{number}") for number in range(13)} | {"inventory.img": b"i"}
    for _ in range(40):
        async with capturing(node_dir) as capture:
            await trio.testing.wait_all_tasks_blocked()
            criu = capture.criu("s1", variant)
            criu.push_now()
            for name, data in images.items():
                criu.image_now(name, data)
            criu.finish_now()
            await capture.ended.wait()
        assert capture.out.rounds == [("s1", images)]
        assert capture.ingest.ended_well


async def test_one_criu_that_pre_dumps_again_and_again(node_dir: Path) -> None:
    """Driven by RPC, perhaps. All is said before the proxy gets to run."""
    for _ in range(40):
        async with capturing(node_dir) as capture:
            await trio.testing.wait_all_tasks_blocked()
            snapshots = ["s0", "s1", "s2"]
            for snapshot in snapshots:
                criu = capture.criu(snapshot)
                criu.push_now()
                criu.image_now("pages-1.img", snapshot.encode())
                criu.image_now("inventory.img", b"i")
            criu.finish_now()
            await capture.ended.wait()
        wanted = [(one, {"pages-1.img": one.encode(), "inventory.img": b"i"}) for one in snapshots]
        assert capture.out.rounds == wanted
        assert not capture.ingest.ended_well, "a pre-dump was the last: nothing has been dumped"


@VARIANTS
async def test_three_hundred_images_at_once(node_dir: Path, variant: str) -> None:
    """Descriptors are given back with each: that is seen when the test is over."""
    names = [f"core-{number}.img" for number in range(300)]
    async with capturing(node_dir) as capture:
        steps = ["push", *(f"half:{name}" for name in names), "hold", "whole", "image:inventory.img", "finish"]
        criu = await capture.process("dump", "s1", *steps, options=variant_option(variant))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert capture.out.rounds == [("s1", {})], "all are open"
        await go_on(criu)
        await capture.ended.wait()
        await bury(criu, kill=False)
    assert capture.out.rounds == [("s1", {name: body(name) for name in [*names, "inventory.img"]})]
    assert capture.ingest.ended_well


# ---- what CRIU reads ----


@VARIANTS
async def test_what_is_not_there_or_not_whole_is_said_to_be_missing_at_once(node_dir: Path, variant: str) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1", variant)
        await criu.push()
        assert await criu.read("pages-1.img", "s0") is None
        async with await criu.open("pages-1.img") as stream:
            await stream.send_all(PAGES[:10])
            assert await criu.read("pages-1.img") is None
        await criu.image("inventory.img", b"i")
        await criu.finish()


@VARIANTS
async def test_an_image_of_an_earlier_round_is_read_back(node_dir: Path, variant: str) -> None:
    async with capturing(node_dir) as capture:
        await pre_dump(capture, "s0", variant)
        criu = capture.criu("s1", variant)
        await criu.push()
        for _ in range(2):
            assert await criu.read("pages-1.img", "s0") == PRE_DUMP["pages-1.img"]
        stream = await criu.open_read("pages-1.img", "s0")  # CRIU opens it just to see that it is there
        assert stream is not None
        await stream.aclose()
        assert await criu.read("core-7.img", "s0") is None
        await criu.finish()


async def test_an_id_that_is_pushed_again_begins_anew(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        await pre_dump(capture, ".")
        criu = capture.criu(".")
        await criu.push()
        assert await criu.read("pages-1.img") is None, "that was another round"
        for name, data in DUMP.items():
            await criu.image(name, data)
        assert await criu.read("pages-1.img") == DUMP["pages-1.img"]
        await criu.finish()
    assert capture.out.rounds == [(".", PRE_DUMP), (".", DUMP)]


async def test_a_list_before_any_push_has_no_answer(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        with pytest.raises(EOFError):
            await criu.ids()
        await run(criu, DUMP)
        await criu.finish()
    assert capture.out.rounds == [("s1", DUMP)]


# ---- who does wrong ----


async def test_a_silent_client_holds_nobody_up(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        silent = await capture.process("dump", "s1", "connect", "hold")
        criu = capture.criu("s1")
        await run(criu, DUMP)
        await capture.until_complete()
        await criu.finish()
        await capture.ended.wait()
        await bury(silent)
    assert capture.out.rounds == [("s1", DUMP)] and capture.ingest.ended_well


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\xff\xff\xff\xff", id="length of 4 GiB"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(entry("../x", "s1", 1), id="name with a path"),
        pytest.param(entry("a.img", "s2", 1) + b"\0", id="another id"),
        pytest.param(entry("core-7.img", "s1", 1) + b"\0", id="an image that has come"),
        pytest.param(entry("x.img", "s1", 7), id="mode"),
    ],
)
async def test_one_that_does_wrong_ends_alone(node_dir: Path, raw: bytes) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        await criu.push()
        await criu.image("core-7.img", b"c")
        assert await hung_up(await criu.ask(raw))
        await criu.image("inventory.img", b"i")
        await criu.finish()
    assert capture.out.rounds == [("s1", {"core-7.img": b"c", "inventory.img": b"i"})]
    assert capture.ingest.ended_well


async def test_a_header_that_is_cut_ends_alone(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        await criu.push()
        for size in (2, 4, 9):
            criu.connect(entry("core-7.img", "s1", 1)[:size]).close()
        for name, data in DUMP.items():
            await criu.image(name, data)
        await criu.finish()
    assert capture.out.rounds == [("s1", DUMP)]


async def test_an_image_that_goes_wrong_spoils_its_round(node_dir: Path) -> None:
    """CRIU may believe it delivered, for its begin was heard: what misses it must not be taken for whole."""
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        await criu.push()
        await criu.image("core-7.img", b"c")
        with criu.connect(entry("mm-7.img", "s1", 1)) as sock, pipe_end() as fd:
            socket.send_fds(sock, [b"x"], [fd])
            assert await hung_up(sock.dup())
        await criu.image("inventory.img", b"i")
        await criu.finish()
        await capture.ended.wait()
    assert not capture.ingest.complete and not capture.ingest.ended_well


async def test_what_is_no_pipe_is_an_error(node_dir: Path) -> None:
    with pytest.raises(OSError, match="descriptor"):
        async with capturing(node_dir) as capture:
            criu = capture.criu("s1")
            await criu.push()
            with (node_dir / "file").open("wb") as file, criu.connect(entry("core-7.img", "s1", 1)) as sock:
                socket.send_fds(sock, [b"\0"], [file.fileno()])
            await capture.ended.wait()


@contextmanager
def pipe_end() -> Iterator[int]:
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_client_of_another_user_is_refused(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        node_dir.chmod(0o755)
        (node_dir / PROXY).chmod(0o666)
        criu = capture.criu("s1")
        os.seteuid(65534)
        try:
            criu.push_now()
        finally:
            os.seteuid(0)
        with pytest.raises(EOFError):
            await criu.ids()
        await run(criu, DUMP)
        await criu.finish()
    assert capture.out.rounds == [("s1", DUMP)]


@pytest.mark.parametrize("theirs", ["s1", "s2"], ids=["of the same id", "of another id"])
async def test_a_second_criu_while_one_is_at_work_is_refused_whatever_it_says(node_dir: Path, theirs: str) -> None:
    """Its push has no answer, so it goes on: with images of another process, and an end."""
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        await criu.push()
        await criu.image("core-7.img", b"c")
        second = await capture.process("dump", theirs, "push", "hold", "finish", "hold")
        run_at_once(command("dump", node_dir, theirs, "push", "now:pages-1.img", "now:core-8.img", "finish"))
        await go_on(second)
        await says(second, "holds")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not capture.ended.is_set(), "it has ended what was not its own"
        await criu.image("inventory.img", b"i")
        await criu.finish()
        await capture.ended.wait()
        await bury(second)
    assert capture.out.rounds == [("s1", {"core-7.img": b"c", "inventory.img": b"i"})]
    assert capture.ingest.ended_well


async def test_of_two_that_follow_a_dead_one_the_first_goes_on(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        dead = await capture.process("dump", "s1", "push", "hold")
        stream = await capture.criu("s1").open("core-7.img")  # keeps the round of the dead one open
        await stream.send_all(b"c")
        await bury(dead)
        followers = [await capture.process("dump", "s2", "push", "hold") for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        begun = [message for message in capture.out.messages if isinstance(message, BeginRound)]
        assert [one.snapshot for one in begun] == ["s1", "s2"]
        for follower in followers:
            await bury(follower)
        await run(capture.criu("s3"), DUMP)
        await capture.criu("s3").finish()
    assert capture.out.rounds == [("s3", DUMP)]
