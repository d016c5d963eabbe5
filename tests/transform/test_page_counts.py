"""The transform that lets an older CRIU read a newer one's pagemaps."""

import pytest
from google.protobuf.message import Message

from tests.transform.synthetic import BytesStore, image
from transform.chain import Chain, EndOfDump
from transform.images.codec import decode
from transform.images.proto import memory_pb2
from transform.page_counts import PageCounts

pytestmark = pytest.mark.t0

HEAD = memory_pb2.PagemapHead(pages_id=3)
#: As CRIU 4.2.1 writes them: the count is in field 5 alone.
NEW = image("pagemap", HEAD, memory_pb2.PagemapEntry(vaddr=4096, compat_nr_pages=0, flags=4, nr_pages=7))


def entries(data: bytes) -> list[Message]:
    return [*decode("pagemap-1.img", data).messages(memory_pb2.PagemapEntry)]


@pytest.mark.parametrize("name", ["pagemap-1.img", "pagemap-shmem-1.img"])
def test_both_counts_are_there(name: str) -> None:
    changed = Chain([]).followed_by(PageCounts()).transform(name, NEW)
    assert changed is not None
    both = memory_pb2.PagemapEntry(vaddr=4096, compat_nr_pages=7, flags=4, nr_pages=7)
    assert entries(changed) == [both]
    assert decode(name, changed).messages(memory_pb2.PagemapHead) == [HEAD]
    assert Chain([PageCounts()]).transform(name, changed) == changed


def test_more_pages_than_the_old_field_holds() -> None:
    huge = memory_pb2.PagemapEntry(vaddr=0, compat_nr_pages=0, flags=4, nr_pages=2**33)
    (entry,) = entries(PageCounts().transform("pagemap-1.img", image("pagemap", HEAD, huge)))
    assert entry == memory_pb2.PagemapEntry(vaddr=0, compat_nr_pages=2**32 - 1, flags=4, nr_pages=2**33)


def test_what_an_older_criu_wrote_stays() -> None:
    old = image("pagemap", HEAD, memory_pb2.PagemapEntry(vaddr=4096, compat_nr_pages=7, in_parent=True))
    assert PageCounts().transform("pagemap-1.img", old) == old
    assert PageCounts().finish(EndOfDump({}, BytesStore())) == {}


def test_only_where_it_is_needed() -> None:
    assert not PageCounts().wants("pages-1.img")
    assert not PageCounts(lambda: False).wants("pagemap-1.img")
    assert PageCounts(lambda: True).wants("pagemap-1.img")
