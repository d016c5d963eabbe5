"""Pages of a round that are as in the round before are left out: what soft-dirty tracking gives a pre-dump."""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from tests.transform.synthetic import extent, pagemap
from transform.extents import PAGE_SIZE, PE_PARENT, PE_PRESENT
from transform.images.codec import scan
from transform.images.proto import memory_pb2

Page = tuple[int, bytes, int]  #: address, content, flags


def without_what_is_in(before: Path, images: dict[str, bytes]) -> dict[str, bytes]:
    """The images of a round that refers to the one in the directory `before`, which has all pages."""
    layer = dict(images)
    for name, data in images.items():
        if name.startswith("pagemap-") and "shmem" not in name and (before / name).exists():
            known = {path.name: path.read_bytes() for path in before.glob("pages-*.img")}
            known[name] = (before / name).read_bytes()
            old = {address: data for address, data, _ in _pages(name, known)[1]}
            pages, found = _pages(name, images)
            layer[name], layer[pages] = _layer(name, data, list(found), old)
    return layer


def _pages(name: str, images: dict[str, bytes]) -> tuple[str, Iterator[Page]]:
    """The image that a pagemap refers to, and all that is in it."""
    head = next(scan(name, images[name], memory_pb2.PagemapHead))
    pages = f"pages-{head.pages_id}.img"

    def each() -> Iterator[Page]:
        offset = 0
        for entry in scan(name, images[name], memory_pb2.PagemapEntry):
            for number in range(_count(entry)):
                assert entry.flags & PE_PRESENT
                yield entry.vaddr + number * PAGE_SIZE, images[pages][offset : offset + PAGE_SIZE], entry.flags
                offset += PAGE_SIZE

    return pages, each()


def _count(entry: memory_pb2.PagemapEntry) -> int:
    return entry.nr_pages if entry.HasField("nr_pages") else entry.compat_nr_pages


def _layer(name: str, data: bytes, pages: list[Page], old: dict[int, bytes]) -> tuple[bytes, bytes]:
    head = next(scan(name, data, memory_pb2.PagemapHead))
    wide = any(entry.HasField("nr_pages") for entry in scan(name, data, memory_pb2.PagemapEntry))
    entries, kept = [], []

    def key(item: tuple[int, Page]) -> tuple[int, bool, int]:
        index, (address, content, flags) = item
        return address - index * PAGE_SIZE, old.get(address) == content, flags

    for (_, same, flags), group in groupby(enumerate(pages), key):
        run = [page for _, page in group]
        entries.append(
            extent(
                run[0][0],
                len(run),
                flags & ~PE_PRESENT | PE_PARENT if same else flags,
                **({"nr_pages": len(run)} if wide else {}),
            )
        )
        kept += [] if same else [content for _, content, _ in run]
    assert any(entry.flags & PE_PARENT for entry in entries), f"{name}: nothing is as it was"
    return pagemap(head.pages_id, *entries), b"".join(kept)
