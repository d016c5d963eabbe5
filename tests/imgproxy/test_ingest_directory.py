"""Images that a dump writes into a directory: when each goes out, in which order, and what must not happen to them."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from imgnode.nursery import flat_nursery
from imgproxy.compression import Compression
from imgproxy.ingest.directory import WrittenImages, find_images
from imgproxy.sender import ImageSender
from imgwire.errors import RemoteProtocolError, UsageError
from tests.playbook import MemoryOutgoing, random_bytes
from transform.chain import Chain
from transform.errors import TransformError

pytestmark = pytest.mark.t1


class Dump:
    """A directory into which a test writes, and what went out of it."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.out = directory, MemoryOutgoing()
        self.images = WrittenImages(directory, ImageSender(self.out, Chain([]), Compression("off")))

    def write(self, name: str, data: bytes = b"image") -> None:
        (self.directory / name).write_bytes(data)

    async def went_out(self, *names: str) -> None:
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert self.out.ended == list(names)


@pytest.fixture
async def dump(tmp_path: Path) -> AsyncIterator[Dump]:
    async with followed(tmp_path) as one:
        yield one


@asynccontextmanager
async def followed(directory: Path) -> AsyncIterator[Dump]:
    one = Dump(directory)
    async with flat_nursery() as nursery:
        nursery.start_soon(one.images.follow)
        yield one
        one.images.stop()
    one.images.close()


async def test_each_goes_out_when_it_is_closed(dump: Dump) -> None:
    large = random_bytes(3 << 20)
    dump.write("core-7.img")
    await dump.went_out("core-7.img")
    with (dump.directory / "files.img").open("wb") as file:
        file.write(large[:1000])
        file.flush()
        dump.write("fs-7.img", b"")
        await dump.went_out("core-7.img", "fs-7.img")
        file.write(large[1000:])
    await dump.went_out("core-7.img", "fs-7.img", "files.img")
    assert dump.out.images["files.img"] == large
    assert dump.out.images["fs-7.img"] == b""


async def test_the_inventory_waits_for_the_others(dump: Dump) -> None:
    """Also for those that are written last, or were there before anybody looked."""
    dump.write("inventory.img")
    await dump.went_out()
    dump.write("core-7.img")
    dump.write("mm-7.img")
    await dump.images.finish()
    assert sorted(dump.out.ended[:-1]) == ["core-7.img", "mm-7.img"]
    assert dump.out.ended[-1] == "inventory.img"


async def test_what_was_written_before_it_looked(tmp_path: Path) -> None:
    (tmp_path / "ids-7.img").write_bytes(b"early")
    async with followed(tmp_path) as dump:
        dump.write("core-7.img")
        dump.write("inventory.img")
        await dump.images.finish()
        assert dump.out.ended == ["core-7.img", "ids-7.img", "inventory.img"]


async def test_other_files_stay(dump: Dump) -> None:
    for name in ("stats-dump", "dump.log", "irmap-cache"):
        dump.write(name)
    (dump.directory / "parent").symlink_to("../0")
    dump.write("inventory.img")
    await dump.images.finish()
    assert dump.out.ended == ["inventory.img"]


@pytest.mark.parametrize("when", ["followed", "at the end"])
async def test_an_image_that_is_written_again(dump: Dump, when: str) -> None:
    dump.write("core-7.img")
    await dump.went_out("core-7.img")
    dump.write("core-7.img", b"again")
    if when == "followed":
        await dump.went_out("core-7.img")
    dump.write("inventory.img")
    with pytest.raises(RemoteProtocolError, match=r"^core-7\.img was changed after it had been sent"):
        await dump.images.finish()
    assert dump.out.ended == ["core-7.img"], "the last image does not go out"


@pytest.mark.parametrize("how", ["grows", "is gone", "is another"])
async def test_an_image_that_changes_unclosed(dump: Dump, how: str) -> None:
    dump.write("core-7.img")
    await dump.went_out("core-7.img")
    dump.write("inventory.img")
    path, opened = dump.directory / "core-7.img", None
    if how == "grows":
        opened = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(opened, b"more")
    elif how == "is gone":
        path.unlink()
    else:
        (dump.directory / "new").write_bytes(b"image")
        (dump.directory / "new").rename(path)
    with pytest.raises(RemoteProtocolError, match=r"^core-7\.img was changed after it had been sent"):
        await dump.images.finish()
    if opened is not None:
        os.close(opened)


async def test_a_dump_without_its_last_image(dump: Dump) -> None:
    dump.write("core-7.img")
    with pytest.raises(RemoteProtocolError, match=r"there is no inventory\.img"):
        await dump.images.finish()


async def test_a_name_that_is_none(dump: Dump) -> None:
    dump.write("core 7.img")
    dump.write("inventory.img")
    with pytest.raises(RemoteProtocolError, match="core 7"):
        await dump.images.finish()


async def test_what_a_transform_refuses_is_told_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then CRIU can be told."""

    async def refuse(_sender: ImageSender, name: str, _fd: int) -> None:
        await trio.lowlevel.checkpoint()
        raise TransformError(f"{name}: no")

    monkeypatch.setattr(ImageSender, "send_from_pipe", refuse)
    async with followed(tmp_path) as dump:
        dump.write("core-7.img")
        await trio.testing.wait_all_tasks_blocked(0.02)
        dump.write("inventory.img")
        with pytest.raises(TransformError, match=r"core-7\.img: no"):
            await dump.images.finish()


async def test_the_end_comes_while_an_image_goes_out(dump: Dump) -> None:
    """None is sent twice."""
    for number in range(5):
        dump.write(f"core-{number}.img", random_bytes(1 << 20))
    dump.write("inventory.img")
    await dump.images.finish()
    assert sorted(dump.out.ended) == [*(f"core-{number}.img" for number in range(5)), "inventory.img"]
    assert dump.out.ended[-1] == "inventory.img"


def test_a_finished_dump(tmp_path: Path) -> None:
    for name in ("inventory.img", "core-7.img", "dump.log"):
        (tmp_path / name).write_bytes(b"")
    assert [path.name for path in find_images(tmp_path)] == ["core-7.img", "inventory.img"]
    (tmp_path / "parent").symlink_to("../0")
    with pytest.raises(UsageError, match="incremental"):
        find_images(tmp_path)


def test_no_finished_dump(tmp_path: Path) -> None:
    (tmp_path / "core-7.img").write_bytes(b"")
    with pytest.raises(UsageError, match=r"there is no inventory\.img, so no finished dump"):
        find_images(tmp_path)
