"""Writing an archive: it has its name only when it is whole; a pipe's end is told from its emptiness."""

from pathlib import Path

import pytest

from imgproxy.outgoing import ArchiveWriter, readable_size
from imgwire.errors import UsageError
from imgwire.link import DataPayload, LinkConnection, MessageReceived, Role
from imgwire.messages import Abort, Hello
from tests.imgwire.conversations import IDENTITY
from tests.playbook import filled_pipe, random_bytes

pytestmark = pytest.mark.t1

HELLO = Hello(IDENTITY, "web-1")


async def test_frames_are_written_as_the_link_has_them(node_dir: Path) -> None:
    writer = ArchiveWriter(node_dir / "a", HELLO)
    data = random_bytes(100_000)
    with filled_pipe(data) as pipe:
        await writer.send(Abort("first"))
        assert await writer.send_pipe(1, 0, pipe.reader) == len(data)
        await writer.send_bytes(1, len(data), b"more")
        await writer.send_bytes(2, 0, b"packed", raw_length=77)
        with pytest.raises(BlockingIOError):
            await writer.send_pipe(1, 0, pipe.reader)
        pipe.close_writer()
        assert await writer.send_pipe(1, 0, pipe.reader) == 0
    assert list(node_dir.glob("a")) == []
    await writer.finish()
    writer.close()
    events = LinkConnection(Role.CACHE).receive_data((node_dir / "a").read_bytes())
    assert [event.data for event in events if isinstance(event, DataPayload)] == [data, b"more", b"packed"]
    assert MessageReceived(1, Abort("first")) in events
    assert [path.name for path in node_dir.iterdir()] == ["a"]


async def test_one_that_is_not_finished_leaves_nothing(node_dir: Path) -> None:
    writer = ArchiveWriter(node_dir / "a", HELLO)
    await writer.send_bytes(1, 0, b"x")
    writer.close()
    assert list(node_dir.iterdir()) == []


async def test_nothing_is_overwritten(node_dir: Path) -> None:
    writer = ArchiveWriter(node_dir / "a", HELLO)
    (node_dir / "a").write_text("came meanwhile")
    with pytest.raises(FileExistsError):
        await writer.finish()
    writer.close()
    with pytest.raises(UsageError, match="exists already"):
        ArchiveWriter(node_dir / "a", HELLO)
    assert (node_dir / "a").read_text() == "came meanwhile"


def test_a_place_that_cannot_be_written_is_named(node_dir: Path) -> None:
    with pytest.raises(UsageError, match="gone: No such file or directory; choose another place"):
        ArchiveWriter(node_dir / "gone" / "a", HELLO)


async def test_what_a_pipe_has_is_told_from_its_end() -> None:
    with filled_pipe(b"abc") as pipe:
        assert readable_size(pipe.reader) == 3
        pipe.close_writer()
        assert readable_size(pipe.reader) == 3
    with filled_pipe() as pipe:
        with pytest.raises(BlockingIOError):
            readable_size(pipe.reader)
        pipe.close_writer()
        assert readable_size(pipe.reader) == 0
