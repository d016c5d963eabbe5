"""Open files for the other ISA: four flags of open(2) have other numbers, and the executable is another file."""

from collections.abc import Iterator

from google.protobuf.message import Message

from transform.errors import TransformError
from transform.images.codec import Image
from transform.images.proto import files_pb2

_SWAPPED = ((0x4000, 0x10000), (0x8000, 0x20000))
"""O_DIRECT and O_DIRECTORY, O_NOFOLLOW and O_LARGEFILE: x86-64's and aarch64's numbers of each are the other's."""

_FLAGS = "flags"


def swap_flags(flags: int) -> int:
    """The flags of an open file as the other ISA numbers them, in either direction."""
    kept = flags & ~sum(one | other for one, other in _SWAPPED)
    for one, other in _SWAPPED:
        kept |= (other if flags & one else 0) | (one if flags & other else 0)
    return kept


def swap_all(image: Image) -> None:
    """Every open file of files.img."""
    for file in image.messages(files_pb2.File):
        for message in _opened(file):
            setattr(message, _FLAGS, swap_flags(getattr(message, _FLAGS)))


def executable_of(image: Image, number: int) -> files_pb2.RegFile:
    """The regular file of that number. TransformError."""
    for file in image.messages(files_pb2.File):
        if file.id == number and file.HasField("reg"):
            return file.reg
    raise TransformError(f"{image.name}: has no regular file {number}, which a task's mm image calls its executable")


def _opened(file: files_pb2.File) -> Iterator[Message]:
    """What of it has flags of open(2)."""
    for _, message in file.ListFields():
        if isinstance(message, Message) and _FLAGS in message.DESCRIPTOR.fields_by_name:
            yield message
