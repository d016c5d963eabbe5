"""Where the raw bytes after an entry end."""

import pytest

from transform.images import payload
from transform.images.proto import payload_pb2

pytestmark = pytest.mark.t0


def test_plain_counts() -> None:
    assert payload.pipe_data(payload_pb2.PipeData(bytes=5), b"", 10) == 15
    assert payload.socket_packet(payload_pb2.SocketPacket(length=7), b"", 10) == 17
    assert payload.tcp_stream(payload_pb2.TcpStream(inq_len=3, outq_len=4), b"", 10) == 17
    assert payload.bpf_map(payload_pb2.BpfMapData(keys_bytes=3, values_bytes=5), b"", 10) == 18
    assert payload.rest(None, bytes(30), 10) == 30


@pytest.mark.parametrize(("count", "end"), [(0, 10), (1, 18), (4, 18), (5, 26)])
def test_semaphores_are_filled_up(count: int, end: int) -> None:
    assert payload.semaphores(payload_pb2.SemaphoreSet(nsems=count), b"", 10) == end


@pytest.mark.parametrize(("size", "elsewhere", "end"), [(5, False, 18), (8, False, 18), (8, True, 10)])
def test_shared_memory_is_filled_up_or_elsewhere(size: int, elsewhere: bool, end: int) -> None:
    segment = payload_pb2.SharedMemorySegment(size=size, in_pagemaps=elsewhere)
    assert payload.shared_memory(segment, b"", 10) == end


def test_a_queue_ends_behind_its_last_message() -> None:
    entry = payload_pb2.QueuedMessage(msize=5).SerializePartialToString()
    message = len(entry).to_bytes(4, "little") + entry + b"text.\0\0\0"
    queue = payload_pb2.MessageQueue(qnum=2)
    assert payload.message_queue(queue, message * 2, 0) == 2 * len(message)
    assert payload.message_queue(queue, message + b"\1", len(message)) > len(message) + 1  # cut: beyond the image
