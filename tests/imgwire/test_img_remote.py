"""The local sockets of the original `criu --remote`: the bytes that its client sends, in any split."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgwire.errors import RemoteProtocolError
from imgwire.img_remote import (
    BodyBegun,
    Finish,
    Finished,
    ImageWanted,
    ImageWritten,
    LocalConnection,
    LocalEvent,
    PipePassed,
    SnapshotPushed,
    SnapshotsWanted,
)
from imgwire.img_remote_messages import LocalEntry, OpenMode, encode_snapshots

pytestmark = pytest.mark.t0

PUSH = bytes.fromhex("0d0000000a06706172656e741200188008")
PUSHED_ID = bytes.fromhex("040000000a027331")
READ_IDS = bytes.fromhex("0c0000000a06706172656e7412001800")
DUMP_ENDS = bytes.fromhex("060000000a0012001801")
RESTORE_ENDS = bytes.fromhex("060000000a0012001800")
EXISTS = bytes.fromhex("020000000800")
MISSING = bytes.fromhex("020000000802")
WRITE = LocalEntry("pages-1.img", "s1", OpenMode.WRITE).encode()
READ = LocalEntry("pages-1.img", "s1", OpenMode.READ).encode()


def fed(connection: LocalConnection, raw: bytes, step: int = 1 << 16) -> list[LocalEvent]:
    """Give the bytes as a careful reader would: never more than wanted, `step` at most."""
    events = []
    while raw:
        size = min(step, connection.wanted, len(raw))
        events += connection.receive_data(raw[:size])
        raw = raw[size:]
    return events


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize(
    ("raw", "event"),
    [
        (PUSH + PUSHED_ID, SnapshotPushed("s1")),
        (READ_IDS, SnapshotsWanted()),
        (WRITE, ImageWritten("pages-1.img", "s1")),
        (READ, ImageWanted("pages-1.img", "s1")),
        (DUMP_ENDS, Finished(Finish.DUMP)),
        (RESTORE_ENDS, Finished(Finish.RESTORE)),
    ],
)
def test_what_a_client_says(raw: bytes, event: LocalEvent, step: int) -> None:
    assert fed(LocalConnection(), raw, step) == [event]


def test_entries_are_encoded_as_recorded() -> None:
    assert LocalEntry("parent", "", OpenMode.APPEND).encode() == PUSH
    assert LocalEntry("parent", "", OpenMode.READ).encode() == READ_IDS
    assert LocalEntry("", "", OpenMode.WRITE).encode() == DUMP_ENDS
    assert encode_snapshots(["s1"]) == PUSHED_ID


def test_the_list_of_ids_oldest_first() -> None:
    connection = LocalConnection()
    fed(connection, READ_IDS)
    assert connection.wanted == 0
    assert connection.answer_snapshots(["s1", "s2"]) == EXISTS + PUSHED_ID + bytes.fromhex("040000000a027332")
    assert connection.receive_eof() == []


def test_a_write_with_a_pipe() -> None:
    connection = LocalConnection()
    fed(connection, WRITE)
    assert connection.wanted == 1 and connection.may_carry_fd
    assert connection.receive_data(b"\0", 1) == [PipePassed()]
    assert connection.wanted == 0 and connection.receive_eof() == []


def test_a_write_on_the_socket() -> None:
    """Its first byte may be a zero, too: without a descriptor it is the image's."""
    connection = LocalConnection()
    fed(connection, WRITE)
    assert connection.receive_data(b"\0") == [BodyBegun(b"\0")]
    assert connection.wanted == 0


def test_an_empty_image_on_the_socket() -> None:
    connection = LocalConnection()
    fed(connection, WRITE)
    assert connection.receive_eof() == [BodyBegun(b"")]


def test_a_read_with_a_pipe() -> None:
    connection = LocalConnection()
    fed(connection, READ)
    assert connection.answer(exists=True) == EXISTS
    assert connection.receive_data(b"\0", 1) == [PipePassed()]


def test_a_read_on_the_socket() -> None:
    """The client sends nothing more, and hangs up when it has enough."""
    connection = LocalConnection()
    fed(connection, READ)
    assert connection.answer(exists=True) == EXISTS
    assert connection.receive_eof() == []


def test_an_image_that_does_not_exist() -> None:
    connection = LocalConnection()
    fed(connection, READ)
    assert connection.answer(exists=False) == MISSING
    assert connection.wanted == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff\xff\xff",
        b"\0\0\0\0",
        bytes.fromhex("02000000 0a00"),  # fields are missing
        bytes.fromhex("06000000 0a0012001802"),  # an open mode that there is not
        LocalEntry("parent", "", OpenMode.WRITE).encode(),
        LocalEntry("a.img", "s1", OpenMode.APPEND).encode(),
        bytes.fromhex("0f000000 0a09 2e2e2f782e696d6701 1200 1801"),  # a name with a path
        PUSH + bytes.fromhex("03000000 0a0561"),
    ],
)
def test_what_no_client_says(raw: bytes) -> None:
    connection = LocalConnection()
    with pytest.raises(RemoteProtocolError):
        fed(connection, raw)


@pytest.mark.parametrize(
    ("after", "data", "fds"), [(b"", b"\0", 1), (WRITE, b"x", 1), (WRITE, b"\0", 2), (READ, b"x", 0)]
)
def test_descriptors_and_bytes_out_of_place(after: bytes, data: bytes, fds: int) -> None:
    connection = LocalConnection()
    fed(connection, after)
    if after == READ:
        connection.answer(exists=True)
    with pytest.raises(RemoteProtocolError):
        connection.receive_data(data, fds)


@pytest.mark.parametrize("raw", [PUSH[:3], PUSH[:9], PUSH, PUSH + PUSHED_ID[:5]])
def test_a_client_that_leaves_in_the_middle(raw: bytes) -> None:
    connection = LocalConnection()
    fed(connection, raw)
    with pytest.raises(RemoteProtocolError, match="in the middle of a request"):
        connection.receive_eof()


def test_a_client_that_says_nothing() -> None:
    assert LocalConnection().receive_eof() == []


@given(st.binary(max_size=64))
def test_garbage_is_garbage(raw: bytes) -> None:
    connection = LocalConnection()
    try:
        while raw and connection.wanted:
            size = min(connection.wanted, len(raw))
            connection.receive_data(raw[:size])
            raw = raw[size:]
    except RemoteProtocolError as error:
        assert str(error)
