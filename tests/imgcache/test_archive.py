"""An archive is read as it was written, any number of times, and one that is damaged is named."""

from pathlib import Path

import pytest

from imgcache.archive import Archive
from imgnode.pipes import Pipe, write_all
from imgproxy.compression import Compression
from imgproxy.outgoing import ArchiveWriter
from imgproxy.sender import ImageSender
from imgwire.errors import UsageError
from imgwire.messages import Hello, OpenImage
from imgwire.states import SessionState
from tests.imgwire.conversations import IDENTITY, control, hello_frame
from tests.playbook import open_session, random_bytes
from transform.chain import Chain
from transform.memory import PageStore

pytestmark = pytest.mark.t1

IMAGES = {"files.img": b"f" * 5000, "pages-1.img": random_bytes(900_000), "pages-2.img": b"", "inventory.img": b"i"}
TEXT = {"pages-1.img": b"compressible " * 50_000, "inventory.img": b"i"}


class NoPages(PageStore):
    def read(self, image: str, offset: int, length: int) -> bytes:
        raise AssertionError("nothing is read back")

    def patch(self, image: str, offset: int, data: bytes) -> None:
        raise AssertionError("nothing is patched")


async def write_archive(path: Path, images: dict[str, bytes] = IMAGES, compress: str = "off") -> None:
    writer = ArchiveWriter(path, Hello(IDENTITY, "web-1"))
    try:
        sender = ImageSender(writer, Chain([]), Compression(compress))
        for name, data in images.items():
            pipe = Pipe()
            await write_all(pipe.writer, data)
            pipe.close_writer()
            await sender.send_from_pipe(name, pipe.reader)
            pipe.close()
        await sender.finish(NoPages())
        await writer.finish()
    finally:
        writer.close()


async def load(path: Path, directory: Path) -> dict[str, bytes]:
    archive = Archive(path)
    try:
        hello = await archive.hello()
        assert hello.name == "web-1" and hello.session != IDENTITY
        with open_session(directory) as session:
            await archive.load(session)
            assert session.state is SessionState.COMMITTED
            return {image.name: image.read(0, image.size) for image in session.store}
    finally:
        archive.close()


@pytest.mark.parametrize(("images", "compress"), [(IMAGES, "off"), (TEXT, "1")])
async def test_it_is_read_as_it_was_written_each_time(node_dir: Path, images: dict[str, bytes], compress: str) -> None:
    path = node_dir / "archive"
    await write_archive(path, images, compress)
    before = path.read_bytes()
    for _ in range(3):
        assert await load(path, node_dir) == images
    assert path.read_bytes() == before


async def test_plain_pages_stay_in_the_file(node_dir: Path) -> None:
    await write_archive(node_dir / "archive", {"pages-1.img": IMAGES["pages-1.img"]})
    archive = Archive(node_dir / "archive")
    await archive.hello()
    with open_session(node_dir) as session:
        await archive.load(session)
        assert session.store.arena.memory_bytes == 0 and session.store.size == 900_000
        for extent in session.store.named("pages-1.img").extents():
            session.store.arena.release(extent)
        assert session.store.named("pages-1.img").read(0, 900_000) == IMAGES["pages-1.img"]
    archive.close()


@pytest.mark.parametrize("compress", ["off", "1"])
async def test_one_that_is_cut_anywhere_is_refused(node_dir: Path, compress: str) -> None:
    """Also where only the last frame, which says that nothing follows, or a part of it is missing."""
    path = node_dir / "archive"
    await write_archive(path, {"files.img": b"f" * 300, "pages-1.img": b"p" * 3000}, compress)
    whole = path.read_bytes()
    for size in [*range(0, len(whole) - 64, 61), *range(len(whole) - 64, len(whole))]:
        path.write_bytes(whole[:size])
        with pytest.raises(UsageError) as caught:
            await load(path, node_dir)
        line = str(caught.value)
        assert (
            line.startswith(f"archive {path}: ")
            and "cut" in line
            and line.endswith("copy it again from where it was parked")
        )
        assert "\n" not in line


async def test_one_that_is_damaged_is_refused_or_its_pages_differ(node_dir: Path) -> None:
    path = node_dir / "archive"
    await write_archive(path, {"files.img": b"f" * 300, "pages-1.img": b"p" * 300})
    whole = path.read_bytes()
    pages = whole.index(b"p" * 300)
    first = len(hello_frame(Hello(IDENTITY, "web-1")))
    for place in range(first, len(whole) - 32, 7):
        if pages <= place < pages + 300:
            continue  # digests of pages are taken only when asked for
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        path.write_bytes(damaged)
        try:
            loaded = await load(path, node_dir)
        except UsageError:
            continue
        assert loaded == {"files.img": b"f" * 300, "pages-1.img": b"p" * 300}


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"", "damaged or cut at byte 0"),
        (b"no archive, whatever else it may be ...", "no frame header"),
        (control(1, OpenImage(0, "a.img")), "CONTROL frame while greeting"),
    ],
    ids=["empty", "another file", "no hello"],
)
async def test_what_is_no_archive_is_refused(node_dir: Path, raw: bytes, reason: str) -> None:
    path = node_dir / "archive"
    path.write_bytes(raw)
    with pytest.raises(UsageError, match=reason):
        await load(path, node_dir)


def test_one_that_is_not_there_is_named(node_dir: Path) -> None:
    with pytest.raises(UsageError, match=f"archive {node_dir}/gone: No such file or directory"):
        Archive(node_dir / "gone")
