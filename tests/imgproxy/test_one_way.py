"""A receiver that says nothing back, and the original client's rounds: they go out, or the client's dump fails."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from imgnode.addresses import parse_address
from imgnode.nursery import flat_nursery
from imgproxy.dialer import Dialer
from imgproxy.one_way import OneWaySession
from imgproxy.original_wire import CannotCarry, OriginalWire
from imgwire.img_remote_messages import encode_snapshots
from imgwire.names import is_of_pre_dump
from tests.fake_remote_criu import body, command
from tests.original_wire import FakeImageCache
from transform.chain import Chain

pytestmark = pytest.mark.t1

PRE_DUMP = ["push", "image:pagemap-7.img", "image:pages-1.img:300000", "image:inventory.img"]
DUMP = ["push", "image:fdinfo-2.img", *PRE_DUMP[1:3], "image:pstree.img", "image:inventory.img"]


@asynccontextmanager
async def capturing(directory: Path) -> AsyncIterator[tuple[FakeImageCache, OneWaySession]]:
    """A session of `imgproxy --remote --wire criu` that waits for its client."""
    (directory / "journal").mkdir()
    async with flat_nursery() as nursery:
        cache = FakeImageCache()
        await nursery.start(cache.run)
        wire = await OriginalWire.connect(Dialer(parse_address(cache.address)), "unused")
        journal = directory / "journal"
        session = OneWaySession(
            wire, directory, journal, lambda: Chain([]), compress="auto", remote=True, hookless=True
        )
        with trio.fail_after(20):
            async with flat_nursery() as inner:
                await inner.start(session.capture)
                yield cache, session
        nursery.cancel_scope.cancel()


async def criu(verb: str, directory: Path, snapshot: str, *steps: str) -> int:
    """Run the fake client; its exit code."""
    done = await trio.run_process(
        command(verb, directory, snapshot, *steps), check=False, capture_stdout=True, capture_stderr=True
    )
    return done.returncode


@pytest.mark.parametrize("variant", [[], ["--nopipe"]], ids=["pipe", "nopipe"])
async def test_pre_dumps_and_a_dump(node_dir: Path, variant: list[str]) -> None:
    async with capturing(node_dir) as (cache, session):
        for snapshot, steps in {"s1": PRE_DUMP, "s2": PRE_DUMP, "s3": [*DUMP, "finish"]}.items():
            verb = "dump" if snapshot == "s3" else "pre-dump"
            words = command(verb, node_dir, snapshot, *steps, options=variant)
            assert (await trio.run_process(words, check=False)).returncode == 0
    assert session.done and cache.ended
    assert cache.list == encode_snapshots(["s1", "s2", "s3"])
    names = [step.split(":")[1] for step in (*PRE_DUMP[1:], *PRE_DUMP[1:], *DUMP[1:])]
    assert Counter(cache.order) == Counter([*names, "parent"])
    at = cache.order.index("parent")
    assert Counter(cache.order[:at]) >= Counter(names[:6]), "the dump is known by its first image that no pre-dump has"
    assert all(is_of_pre_dump(name) for name in cache.order[:at])
    assert cache.images["s2", "pages-1.img"] == body("pages-1.img", 300_000)
    assert not list(node_dir.glob("journal/*"))


async def test_a_round_that_fails_ends_the_migration(node_dir: Path) -> None:
    """Its images are there already, and that wire cannot take them back."""
    with pytest.raises(CannotCarry, match="the end of s2, which failed"):
        async with capturing(node_dir) as (cache, session):
            assert await criu("pre-dump", node_dir, "s1", *PRE_DUMP) == 0
            assert await criu("pre-dump", node_dir, "s2", *PRE_DUMP[:2]) == 0
            await cache.done.wait()
    assert not session.done and not cache.ended


async def test_one_that_fails_before_its_first_image_can_be_repeated(node_dir: Path) -> None:
    async with capturing(node_dir) as (cache, session):
        assert await criu("pre-dump", node_dir, "s1", "push") == 0
        assert await criu("pre-dump", node_dir, "s1", *PRE_DUMP) == 0
        assert await criu("dump", node_dir, "s2", *DUMP, "finish") == 0
    assert session.done and cache.list == encode_snapshots(["s1", "s2"])


async def test_a_dump_that_fails_is_none_there(node_dir: Path) -> None:
    """The client says `finish` in that case, too."""
    async with capturing(node_dir) as (cache, session):
        await criu("dump", node_dir, "s1", *DUMP[:3], "finish")
        await cache.done.wait()
    assert not session.done and not cache.ended
