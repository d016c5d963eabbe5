"""Reading shards: whatever is wrong with one is found, and named."""

import os
from pathlib import Path

import pytest
import zstandard

from imgproxy.outgoing import ArchiveWriter
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.frames import HEADER_SIZE, FrameType, Header
from imgwire.messages import Abort, EndImage, Hello, ImagesComplete, OpenImage, Welcome, encode
from tests.criu_image_streamer.checkpoint import IMAGES, capture_to_files, extracted, files, options, pipes, served

pytestmark = pytest.mark.t1

SMALL = {"core-1.img": b"c" * 40, "pages-1.img": b"p" * 8192, "inventory.img": b"i"}


def frames(raw: bytes) -> list[bytes]:
    """A shard, frame by frame."""
    found = []
    while raw:
        header = Header.decode(raw[:HEADER_SIZE])
        found.append(raw[: HEADER_SIZE + header.length])
        raw = raw[HEADER_SIZE + header.length :]
    return found


async def read(directory: Path, paths: list[Path]) -> dict[str, bytes]:
    target = directory / "out"
    target.mkdir(exist_ok=True)
    with files(paths, os.O_RDONLY) as fds:
        return await extracted(target, fds)


async def refused(directory: Path, paths: list[Path], why: str) -> None:
    with pytest.raises(RemoteProtocolError, match=why):
        await read(directory, paths)
    assert not any((directory / "out").iterdir())


@pytest.mark.parametrize("count", [1, 2, 4])
async def test_in_any_order(node_dir: Path, count: int) -> None:
    paths = await capture_to_files(node_dir, count)
    assert await read(node_dir, paths[::-1]) == IMAGES


async def test_cut_anywhere(node_dir: Path) -> None:
    """At each frame's boundary, inside each header, inside each payload."""
    [path] = await capture_to_files(node_dir, 1, SMALL)
    whole = path.read_bytes()
    cuts, end = {0}, 0
    for frame in frames(whole):
        cuts |= {end, end + 1, end + HEADER_SIZE - 1, end + HEADER_SIZE, end + len(frame) - 1}
        end += len(frame)
    for cut in sorted(cuts - {end}):
        path.write_bytes(whole[:cut])
        await refused(node_dir, [path], f"shard descriptor .*byte {cut}|cut off inside|middle of a frame")


async def test_any_frame_missing_or_twice(node_dir: Path) -> None:
    [path] = await capture_to_files(node_dir, 1, SMALL)
    parts = frames(path.read_bytes())
    for number in range(len(parts)):
        path.write_bytes(b"".join(parts[:number] + parts[number + 1 :]))
        await refused(node_dir, [path], "shard descriptor")
        if number < len(parts) - 1:  # what follows the bye is not read
            path.write_bytes(b"".join(parts[: number + 1] + parts[number:]))
            await refused(node_dir, [path], "shard descriptor")


async def test_any_bit_of_a_small_image_flipped(node_dir: Path) -> None:
    [path] = await capture_to_files(node_dir, 1, SMALL)
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"c" * 40) + 7] ^= 4
    path.write_bytes(raw)
    await refused(node_dir, [path], "core-1.img: its bytes are not those that were sent")


async def test_one_missing(node_dir: Path) -> None:
    paths = await capture_to_files(node_dir, 3)
    await refused(node_dir, paths[:1], "has 3 shards, part 2, 3 is missing")
    await refused(node_dir, [paths[0], paths[2]], "part 2 is missing")


async def test_one_twice(node_dir: Path) -> None:
    paths = await capture_to_files(node_dir, 2)
    await refused(node_dir, [paths[0], paths[0]], "are the same part")


async def test_of_two_checkpoints(node_dir: Path) -> None:
    one, other = await capture_to_files(node_dir, 2), await capture_to_files(node_dir, 2, name="other")
    await refused(node_dir, [one[0], other[1]], "are of different checkpoints")


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "it is empty"),
        (b"x" * 100, "no frame header"),
        (b"\x7fELF" + bytes(5000), "no frame header"),
        (Header(FrameType.BYE).encode(), "BYE frame while greeting"),
        (Header(FrameType.HELLO, 5).encode() + b"hello", "not a map|not msgpack"),
    ],
)
async def test_garbage(node_dir: Path, raw: bytes, why: str) -> None:
    path = node_dir / "garbage"
    path.write_bytes(raw)
    await refused(node_dir, [path], why)


async def test_greetings_and_messages_of_the_link_do_not_belong(node_dir: Path) -> None:
    path = node_dir / "odd"
    welcome = encode(Welcome(1))
    path.write_bytes(Header(FrameType.HELLO, len(welcome)).encode() + welcome)
    await refused(node_dir, [path], "not theirs to send")
    hello, abort = encode(Hello("ab" * 16, "x")), encode(Abort("no"))
    start = Header(FrameType.HELLO, len(hello)).encode() + hello
    path.write_bytes(start + Header(FrameType.CONTROL, len(abort), 1).encode() + abort)
    await refused(node_dir, [path], "does not belong into a shard")
    hello = encode(Hello("ab" * 16, "x", version=9, oldest=8))
    path.write_bytes(Header(FrameType.HELLO, len(hello)).encode() + hello)
    await refused(node_dir, [path], "speaks link versions 8 to 9")


@pytest.mark.parametrize("compressed", [False, True])
async def test_an_archive_of_imgproxy_is_a_checkpoint_in_one_shard(node_dir: Path, compressed: bool) -> None:
    path = node_dir / "parked"
    archive = ArchiveWriter(path, Hello("ab" * 16, "parked"))
    await archive.send(OpenImage(0, "pages-1.img"))
    packed = zstandard.compress(b"p" * 8192)
    await archive.send_bytes(0, 0, packed if compressed else b"p" * 8192, raw_length=8192 if compressed else None)
    await archive.send(EndImage(0, 8192))
    await archive.send(ImagesComplete(1, 8192))
    await archive.finish()
    archive.close()
    if compressed:
        await refused(node_dir, [path], "its pages are compressed: it is an archive for imgcache --from")
    else:
        assert await read(node_dir, [path]) == {"pages-1.img": b"p" * 8192}


async def test_what_follows_the_end_is_left_alone(node_dir: Path) -> None:
    [path] = await capture_to_files(node_dir, 1, SMALL)
    with path.open("ab") as file:
        file.write(b"something else")
    assert await read(node_dir, [path]) == SMALL


async def test_a_pipe_that_stays_open_does_not_hold_up(node_dir: Path) -> None:
    [path] = await capture_to_files(node_dir, 1, SMALL)
    with pipes(1) as ([reader], [writer]):
        os.write(writer, path.read_bytes())
        assert await served(options("serve", node_dir, [reader]), SMALL) == SMALL


async def test_a_directory_is_no_shard(node_dir: Path) -> None:
    with (
        files([node_dir], os.O_RDONLY) as fds,
        pytest.raises(UsageError, match="is no pipe, socket or file"),
    ):
        await extracted(node_dir, fds)


@pytest.mark.parametrize(("shard", "shards"), [(2, 2), (0, 0)])
def test_a_part_that_cannot_be(shard: int, shards: int) -> None:
    with pytest.raises(RemoteProtocolError, match=f"hello of shard {shard} where there are {shards}"):
        Hello("ab" * 16, "x", shard=shard, shards=shards)
