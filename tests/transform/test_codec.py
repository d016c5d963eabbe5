"""Images to entries and back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transform.synthetic import (
    UNKNOWN_HIGH,
    extent,
    frame,
    image,
    inet,
    pagemap,
    regular,
    word,
)  # fmt: skip
from transform.errors import ImageError
from transform.images.codec import Entry, decode, scan
from transform.images.kinds import COMMON_MAGIC, KINDS, SERVICE_MAGIC, Kind, is_raw
from transform.images.proto import files_pb2, memory_pb2, payload_pb2, task_pb2

pytestmark = pytest.mark.t0
MESSAGE_OF_5 = payload_pb2.QueuedMessage(mtype=1, msize=5)
PAYLOADS = [
    image("pipes-data", payload_pb2.PipeData(pipe_id=1, bytes=5)) + b"hello" + frame(b"\x08\x01\x10\x00"),
    image("fifo-data", payload_pb2.PipeData(pipe_id=1, bytes=0)),
    image("sk-queues", payload_pb2.SocketPacket(id_for=3, length=4)) + b"abcd",
    image("tcp-stream", payload_pb2.TcpStream(inq_len=2, inq_seq=1, outq_len=3, outq_seq=1)) + b"inout",
    image("ghost-file", files_pb2.GhostFile(uid=0, gid=0, mode=33188)) + b"contents of any length",
    image("ipcns-shm", payload_pb2.SharedMemorySegment(size=5)) + b"share\0\0\0",
    image("ipcns-shm", payload_pb2.SharedMemorySegment(size=5, in_pagemaps=True)),
    image("ipcns-sem", payload_pb2.SemaphoreSet(nsems=3)) + bytes(8),
    image("ipcns-msg", payload_pb2.MessageQueue(qbytes=9, qnum=2), MESSAGE_OF_5) + b"12345\0\0\0" + frame(MESSAGE_OF_5)
    + b"67890\0\0\0",
    image("bpfmap-data", payload_pb2.BpfMapData(map_id=1, keys_bytes=4, values_bytes=8)) + bytes(12),
]  # fmt: skip


@pytest.mark.parametrize("data", PAYLOADS)
def test_payloads_follow_their_entries(data: bytes) -> None:
    decoded = decode("x.img", data)
    assert decoded.entries
    assert decoded.encode() == data


@pytest.mark.parametrize("data", [data for data in PAYLOADS if decode("x.img", data).entries[-1].payload])
def test_short_payloads_are_refused(data: bytes) -> None:
    if decode("x.img", data).known_kind().name == "ghost-file":
        assert decode("x.img", data[:-1]).entries[0].payload == b"contents of any lengt"
        return
    with pytest.raises(ImageError, match="behind the image"):
        decode("x.img", data[:-1])


def test_untouched_entries_keep_their_bytes_and_touched_ones_change_in_place() -> None:
    first = regular(1, b"/a").SerializeToString() + UNKNOWN_HIGH
    second = b"\x08\x01" + UNKNOWN_HIGH + regular(2, b"/b").SerializeToString()[2:]
    data = image("files", first, second)
    decoded = decode("files.img", data)
    assert decoded.encode() == data
    decoded.messages(files_pb2.File)[1].reg.name = b"/c"
    assert decoded.encode() == data.replace(b"/b", b"/c")


def test_entries_can_be_added() -> None:
    decoded = decode("files.img", image("files", regular(1, b"/a")))
    decoded.entries.append(Entry(regular(2, b"/b")))
    assert decoded.encode() == image("files", regular(1, b"/a"), regular(2, b"/b"))


@pytest.mark.parametrize("header", [b"", b"\x01", word(0x1234), word(COMMON_MAGIC), word(COMMON_MAGIC) + word(7)])
def test_unknown_images_are_carried_and_have_no_messages(header: bytes) -> None:
    decoded = decode("future.img", header)
    assert decoded.encode() == header
    with pytest.raises(ImageError, match=r"future\.img: byte 0"):
        decoded.messages(files_pb2.File)


def test_page_contents_are_never_taken_for_entries() -> None:
    data = image("files", regular(1, b"/a"))
    assert decode("pages-1.img", data).kind is None
    assert is_raw("tmpfs-dev-39.tar.gz.img")
    assert is_raw("ip6tables-9.img")
    assert not is_raw("pagemap-1.img")


@pytest.mark.parametrize("magics", [0x57093306, 0x57004059])
def test_service_images_have_their_own_first_word(magics: int) -> None:
    decoded = decode("stats-dump", word(SERVICE_MAGIC) + word(magics) + frame(b"\x0a\x00"))
    assert decoded.known_kind().name in ("stats", "irmap-cache")


def test_a_pagemap_begins_with_its_head() -> None:
    decoded = decode("pagemap-1.img", pagemap(3, extent(0x1000, 2), extent(0x4000, 1)))
    assert [head.pages_id for head in decoded.messages(memory_pb2.PagemapHead)] == [3]
    assert [entry.vaddr for entry in decoded.messages(memory_pb2.PagemapEntry)] == [0x1000, 0x4000]
    with pytest.raises(ImageError, match="is a pagemap image"):
        list(scan("pagemap-1.img", decoded.encode(), files_pb2.File))


@pytest.mark.parametrize(
    "entry", [extent(0x1000, 1).SerializeToString() + b"\x30\x05", extent(0x1000, 1, flags=12).SerializeToString()]
)
def test_compressed_pages_are_refused_by_name(entry: bytes) -> None:
    data = image("pagemap", memory_pb2.PagemapHead(pages_id=1), entry)
    with pytest.raises(ImageError, match=r"pagemap-1.img: byte 18: .*LZ4"):
        decode("pagemap-1.img", data)


def test_a_missing_required_field_is_refused() -> None:
    with pytest.raises(ImageError, match=r"files\.img: byte 12: File entry without all"):
        decode("files.img", image("files", b"\x08\x01"))


kinds = st.sampled_from(KINDS)


@given(kinds, st.binary(max_size=200), st.booleans())
def test_garbage_is_an_image_or_an_image_error(kind: Kind, body: bytes, framed: bool) -> None:
    data = word(COMMON_MAGIC) + word(kind.magic) + (frame(body) if framed else body)
    try:
        decoded = decode("garbage.img", data)
    except ImageError:
        return
    assert decoded.encode() == data


@given(st.binary(max_size=60), st.integers(0, 10**6), st.integers(0, 255))
def test_a_flipped_byte_is_an_image_or_an_image_error(tail: bytes, place: int, value: int) -> None:
    pstree = task_pb2.PstreeEntry(pid=1, ppid=0, pgid=1, sid=1, threads=[1, 2])
    for good in (image("files", regular(1, b"/a"), inet(2, 80)), image("pstree", pstree), *PAYLOADS):
        data = bytearray(good + tail)
        data[8 + place % (len(data) - 8)] = value
        try:
            assert decode("flipped.img", bytes(data)).encode() == data
        except ImageError as error:
            assert error.image == "flipped.img"


def test_a_group_passes_through_but_its_entry_cannot_be_changed() -> None:
    data = image("files", regular(1, b"/a").SerializeToString() + b"\xa3\x3e\xa4\x3e")
    decoded = decode("files.img", data)
    assert decoded.encode() == data
    decoded.messages(files_pb2.File)[0].reg.name = b"/b"
    with pytest.raises(ImageError, match=r"files\.img: byte 8: an entry that cannot be changed"):
        decoded.encode()
