"""Frames on stacks: every return address becomes the target's, and nothing else changes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transform.isa.pairs import CALLS, pair
from tests.transform.synthetic import BytesStore, extent, mm, pagemap, vma
from transform.errors import AddressError, TransformError
from transform.isa.frames import Words, translate
from transform.memory import Memory

pytestmark = pytest.mark.t0

PAIR = pair()
STACK, PAGE = 0x7FFF0000, 4096


def stack(pages: int, frames: list[tuple[int, int]], store: BytesStore) -> Memory:
    """A stack whose frames are (address, return address), the innermost first; every other byte is 0xEE."""
    data = bytearray(b"\xee" * (pages * PAGE))
    for (frame, returns), above in zip(frames, [*(frame for frame, _ in frames[1:]), 0], strict=False):
        struct.pack_into("<QQ", data, frame - STACK, above, returns)
    store.images["pages-1.img"] = data
    images = {"mm-1.img": mm(vma(STACK, STACK + len(data))), "pagemap-1.img": pagemap(1, extent(STACK, pages))}
    return Memory(1, images, store)


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, CALLS - 1)), min_size=1, max_size=300))
def test_only_return_addresses_change(steps: list[tuple[int, int]]) -> None:
    frames, translated, at = [], [], STACK
    for step, site in steps:
        at += 16 * step
        frames.append((at, PAIR.source.by_id[site].address))
        translated.append((at, PAIR.target.by_id[site].address))
    pages = (at - STACK) // PAGE + 2
    store, wanted = BytesStore(), BytesStore()
    memory = stack(pages, frames, store)
    stack(
        pages,
        [(frame, PAIR.target.by_id[site].address) for (frame, _), (_, site) in zip(frames, steps, strict=True)],
        wanted,
    )
    words = Words(memory)
    assert translate(words, frames[0][0], PAIR, "thread 1") == len(frames)
    words.flush()
    assert store.images == wanted.images


def test_ten_thousand_frames() -> None:
    frames = [(STACK + 48 * number, PAIR.source.by_id[number % CALLS].address) for number in range(1, 10_001)]
    store = BytesStore()
    words = Words(stack(130, frames, store))
    assert translate(words, frames[0][0], PAIR, "thread 1") == 10_000
    words.flush()
    data = store.images["pages-1.img"]
    for number in (1, 5000, 10_000):
        (returns,) = struct.unpack_from("<Q", data, 48 * number + 8)
        assert returns == PAIR.target.by_id[number % CALLS].address


@pytest.mark.parametrize(
    ("frame", "above", "returns", "reason"),
    [
        (STACK + 8, 0, PAIR.source.by_id[0].address, "no address of one"),
        (STACK + 32, STACK + 16, PAIR.source.by_id[0].address, "has its caller's below"),
        (STACK + 32, STACK + 32, PAIR.source.by_id[0].address, "has its caller's below"),
        (STACK + 32, 0, PAIR.source.by_id[0].address + 1, "which is behind no call of prog_x86-64"),
        (STACK + 32, 0, PAIR.target.by_id[0].address, "which is behind no call of prog_x86-64"),
    ],
)
def test_a_chain_that_does_not_hold_is_refused(frame: int, above: int, returns: int, reason: str) -> None:
    store = BytesStore()
    memory = stack(1, [], store)
    struct.pack_into("<QQ", store.images["pages-1.img"], frame - STACK, above, returns)
    before = bytes(store.images["pages-1.img"])
    with pytest.raises(TransformError, match=f"thread 9: .*{reason}"):
        translate(Words(memory), frame, PAIR, "thread 9")
    assert store.images["pages-1.img"] == before


def test_a_frame_that_is_not_mapped_is_refused() -> None:
    with pytest.raises(AddressError, match="not mapped"):
        translate(Words(stack(1, [], BytesStore())), STACK + PAGE, PAIR, "thread 9")
