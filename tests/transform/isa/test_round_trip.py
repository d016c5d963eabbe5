"""Random processes of threads, from x86-64 to aarch64 and back: every byte of memory and of the cores is as it was."""

import struct
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.transform.isa.pairs import CALLS, pair
from tests.transform.isa.test_change import core, run
from tests.transform.synthetic import BytesStore, extent, image, mm, pagemap, regular, vma
from transform.images.proto import task_pb2
from transform.isa.change import TASK_ALIVE, ChangeOfIsa
from transform.isa.pair import Pair
from transform.isa.thread import Place, Thread

pytestmark = pytest.mark.t0

STACK, SIZE = 0x7FFE0000, 1 << 16
#: Bytes of a frame, and the id of the site in its caller that it returns to.
frames = st.tuples(st.integers(1, 40).map(lambda words: 16 * words), st.integers(0, CALLS - 1))
#: A thread: where it stands, its site, its frames.
stacks = st.tuples(
    st.sampled_from([Place.AFTER_CALL, Place.AFTER_SYSCALL]), st.integers(0, CALLS - 1), st.lists(frames, max_size=80)
)

Shape = tuple[Place, int, list[tuple[int, int]]]


def grown(number: int, place: Place, site: int, chain: list[tuple[int, int]]) -> tuple[Thread, bytes]:
    """A thread, and its stack."""
    source, memory = pair().source, bytearray(SIZE)
    base = STACK + number * SIZE
    at, saved = SIZE - 64, 0
    for size, caller in reversed(chain):
        at -= size
        struct.pack_into("<QQ", memory, at, saved, source.by_id[caller].address)
        saved = base + at
    stack = base + at - 32
    link = source.by_id[site].address
    if place is Place.AFTER_SYSCALL:
        struct.pack_into("<Q", memory, at - 40, link)
        return Thread(place, 0x80000000, saved, stack, 0x9000, 0x9100, result=3, link=link), bytes(memory)
    return Thread(place, site, saved, stack, 0x9000, 0x9100, result=7, second_result=9), bytes(memory)


@settings(max_examples=30)
@given(st.lists(stacks, min_size=1, max_size=4))
def test_there_and_back_nothing_is_changed(tmp_path_factory: pytest.TempPathFactory, chosen: list[Shape]) -> None:
    directory: Path = tmp_path_factory.getbasetemp()
    (directory / "bin").mkdir(exist_ok=True)
    made = [grown(number, *one) for number, one in enumerate(chosen)]
    program = regular(1, b"/opt/prog")
    program.reg.size = pair().source.size
    tids = [5 + number for number in range(len(made))]
    images = {f"core-{tid}.img": core(thread, state=TASK_ALIVE) for tid, (thread, _) in zip(tids, made, strict=True)}
    images |= {
        "files.img": image("files", program),
        "mm-5.img": mm(vma(STACK, STACK + len(made) * SIZE), auxv=(6, 4096)),
        "pagemap-5.img": pagemap(1, extent(STACK, len(made) * SIZE // 4096)),
        "pstree.img": image("pstree", task_pb2.PstreeEntry(pid=5, ppid=0, pgid=5, sid=5, threads=tids)),
    }
    memory = b"".join(stack for _, stack in made)
    store = BytesStore(pages_1=memory)
    with patch.object(Pair, "read", lambda _directory, _name, source, target: pair(source, target)):
        there = run(ChangeOfIsa("aarch64", directory), images, store)
        assert bytes(store.images["pages-1.img"]) != memory or not any(chain for _, _, chain in chosen)
        back = run(ChangeOfIsa("x86-64", directory), there, store)
    assert bytes(store.images["pages-1.img"]) == memory
    assert back == images
