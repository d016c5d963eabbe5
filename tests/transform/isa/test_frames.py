"""Frames on stacks: every return address becomes the target's, and nothing else changes."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transform.isa.pairs import CALLS, pair
from tests.transform.synthetic import BytesStore, extent, mm, pagemap, vma
from transform.errors import AddressError, TransformError
from transform.isa.frames import BLOCK, FIRST_BLOCK, Words, translate
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


class Counting(BytesStore):
    """Notes what is read at once: offset and length of each."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[list[tuple[int, int]]] = []

    def read_all(self, places: Sequence[tuple[str, int, int]]) -> list[bytes]:
        self.reads.append([place[1:] for place in places])
        return super().read_all(places)


def test_stacks_that_are_expected_are_read_at_once() -> None:
    store = Counting()
    words = Words(stack(100, [(STACK + 64, 7)], store))
    first = FIRST_BLOCK // PAGE
    words.expect(STACK + page * PAGE + 24 for page in (98, 1, 0, 40, first, 99))
    here = [(0, FIRST_BLOCK), (first * PAGE, FIRST_BLOCK), (40 * PAGE, FIRST_BLOCK), (98 * PAGE, 2 * PAGE)]
    assert store.reads == [here], "none twice, and nothing behind the end of what is mapped"
    assert words.read(STACK + 72) == 7
    words.write(STACK + 98 * PAGE + 24, 8)
    assert store.reads == [here]
    assert words.read(STACK + 39 * PAGE) == 0xEEEEEEEEEEEEEEEE
    assert store.reads[1:] == [[(39 * PAGE, PAGE)]], "up to what is there"
    words.read(STACK + 50 * PAGE)
    assert store.reads[2:] == [[(50 * PAGE, BLOCK)]]
    words.flush()
    assert bytes(store.images["pages-1.img"][98 * PAGE + 24 :][:8]) == (8).to_bytes(8, "little")


def test_no_word_is_at_an_odd_address() -> None:
    with pytest.raises(TransformError, match="0x7fff0ffc, which is no address of a word"):
        Words(stack(2, [], BytesStore())).read(STACK + PAGE - 4)


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
