"""Images made by hand, for tests that need no CRIU."""

from typing import Any

from google.protobuf.message import Message

from transform.images.kinds import COMMON_MAGIC, KINDS
from transform.images.proto import files_pb2, memory_pb2, task_pb2
from transform.memory import PageStore

BY_NAME = {kind.name: kind for kind in KINDS}
UNKNOWN_LOW = b"\x22\x03abc"
"""Field 4, which no file entry of ours names: three bytes."""
UNKNOWN_HIGH = b"\xb8\x3e\x81\x80\x00"
"""Field 999, a varint 1 written in three bytes: a parser would shorten it."""


def word(value: int) -> bytes:
    return value.to_bytes(4, "little")


def frame(entry: Message | bytes) -> bytes:
    raw = entry if isinstance(entry, bytes) else entry.SerializePartialToString()
    return word(len(raw)) + raw


def image(kind: str, *entries: Message | bytes) -> bytes:
    magic = word(BY_NAME[kind].magic)
    return (magic if kind == "inventory" else word(COMMON_MAGIC) + magic) + b"".join(map(frame, entries))


def regular(identifier: int, name: bytes, **more: Any) -> files_pb2.File:
    reg = files_pb2.RegFile(id=identifier, flags=0, pos=3, name=name, size=77, **more)
    return files_pb2.File(type=task_pb2.REG, id=identifier, reg=reg)


def unix(identifier: int, name: bytes, name_dir: bytes | None = None) -> files_pb2.File:
    usk = files_pb2.UnixSocket(
        id=identifier, ino=9, type=1, state=10, flags=2, uflags=0, backlog=5, peer=0, name=name, name_dir=name_dir
    )
    return files_pb2.File(type=task_pb2.UNIXSK, id=identifier, usk=usk)


def inet(identifier: int, port: int, state: int = 10, proto: int = 6, family: int = 2) -> files_pb2.File:
    isk = files_pb2.InetSocket(
        id=identifier, ino=9, family=family, type=1, proto=proto, state=state, src_port=port, dst_port=0, flags=2,
        backlog=5, src_addr=[0x0100007F] if family == 2 else [0, 0, 0, 0x01000000],
    )  # fmt: skip
    return files_pb2.File(type=task_pb2.INETSK, id=identifier, isk=isk)


def vma(start: int, end: int, status: int = 0x201, **more: int) -> memory_pb2.Vma:
    fields = {"pgoff": 0, "shmid": 0, "prot": 3, "flags": 0x22, "fd": -1, **more}
    return memory_pb2.Vma(start=start, end=end, status=status, **fields)


def mm(*vmas: memory_pb2.Vma, auxv: tuple[int, ...] = ()) -> bytes:
    entry = memory_pb2.Mm(exe_file_id=1, vmas=vmas, mm_saved_auxv=auxv)
    for field in entry.DESCRIPTOR.fields[:11]:
        setattr(entry, field.name, 0)
    return image("mm", entry)


def extent(vaddr: int, pages: int, flags: int | None = 4, **more: Any) -> memory_pb2.PagemapEntry:
    return memory_pb2.PagemapEntry(vaddr=vaddr, compat_nr_pages=pages, flags=flags, **more)


def pagemap(pages_id: int, *extents: memory_pb2.PagemapEntry) -> bytes:
    return image("pagemap", memory_pb2.PagemapHead(pages_id=pages_id), *extents)


def pstree(*pids: int) -> bytes:
    return image("pstree", *(task_pb2.PstreeEntry(pid=pid, ppid=0, pgid=pid, sid=pid) for pid in pids))


class BytesStore(PageStore):
    """A page store over bytes."""

    def __init__(self, **images: bytes) -> None:
        self.images = {f"{name.replace('_', '-')}.img": bytearray(data) for name, data in images.items()}

    def read(self, name: str, offset: int, length: int) -> bytes:
        data = bytes(self.images[name][offset : offset + length])
        assert len(data) == length
        return data

    def patch(self, name: str, offset: int, data: bytes) -> None:
        assert offset + len(data) <= len(self.images[name])
        self.images[name][offset : offset + len(data)] = data
