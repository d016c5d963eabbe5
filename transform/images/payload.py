"""Where the raw bytes after an entry end, for the kinds of images that have such bytes.

Each function takes the parsed entry, the whole image and the offset behind the entry, and returns the offset of
the end of its payload; whether that lies within the image is checked by the codec, which calls them.
"""

from collections.abc import Callable
from typing import Any

from transform.images.proto import payload_pb2

PayloadEnd = Callable[[Any, bytes, int], int]
"""(entry, image, offset behind the entry) -> offset behind the payload. The entry is of the kind's own type."""


def _aligned(length: int, unit: int) -> int:
    return (length + unit - 1) // unit * unit


def rest(_: object, image: bytes, offset: int) -> int:
    """Contents of a removed file: everything to the end, chunks of a sparse file with their frames included."""
    return max(offset, len(image))


def pipe_data(entry: payload_pb2.PipeData, _: bytes, offset: int) -> int:
    return offset + entry.bytes


def socket_packet(entry: payload_pb2.SocketPacket, _: bytes, offset: int) -> int:
    return offset + entry.length


def tcp_stream(entry: payload_pb2.TcpStream, _: bytes, offset: int) -> int:
    return offset + entry.inq_len + entry.outq_len


def bpf_map(entry: payload_pb2.BpfMapData, _: bytes, offset: int) -> int:
    return offset + entry.keys_bytes + entry.values_bytes


def semaphores(entry: payload_pb2.SemaphoreSet, _: bytes, offset: int) -> int:
    """16 bits each, filled up to 64."""
    return offset + _aligned(2 * entry.nsems, 8)


def shared_memory(entry: payload_pb2.SharedMemorySegment, _: bytes, offset: int) -> int:
    """The segment filled up to 32 bits; nothing when its pages are in a pagemap, as since CRIU 3.0."""
    return offset if entry.in_pagemaps else offset + _aligned(entry.size, 4)


def message_queue(entry: payload_pb2.MessageQueue, image: bytes, offset: int) -> int:
    """`qnum` messages, each a framed entry and its text filled up to 64 bits."""
    for _ in range(entry.qnum):
        if offset + 4 > len(image):
            return offset + 4
        end = offset + 4 + int.from_bytes(image[offset : offset + 4], "little")
        if end > len(image):
            return end
        message = payload_pb2.QueuedMessage.FromString(image[offset + 4 : end])
        offset = end + _aligned(message.msize, 8)
    return offset
