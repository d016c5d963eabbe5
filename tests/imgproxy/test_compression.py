"""When to compress: decided by rates that the test makes up."""

import pytest
import zstandard

from imgproxy.compression import FAST_LINK, INTERVAL, THREADS, WARM_UP, Compression
from imgwire.errors import UsageError
from imgwire.frames import MAX_DATA
from tests.playbook import random_bytes

pytestmark = pytest.mark.t0

TEXT = (b"compressible " * 100_000)[:MAX_DATA]
NOISE = random_bytes(MAX_DATA)


class FakeLink:
    """A link of a certain rate, on which chunks are sent as the sender does."""

    def __init__(self, compression: Compression, rate: float) -> None:
        self.compression, self.rate = compression, rate
        self.wire = 0
        self.busy = 0.0
        self.packed = 0

    def send(self, data: bytes, total: int) -> None:
        for _ in range(total // len(data)):
            packed = self.compression.compress(data) if self.compression.wanted else None
            self.packed += packed is not None
            size = len(packed or data)
            self.wire += size
            self.busy += size / self.rate
            self.compression.sent(len(data), self.wire, self.busy)


def auto(rate: float, data: bytes, total: int = 4 * INTERVAL) -> tuple[Compression, FakeLink]:
    compression = Compression("auto")
    link = FakeLink(compression, rate)
    link.send(data, total)
    return compression, link


def test_a_slow_link_gets_compressible_data_compressed() -> None:
    compression, link = auto(20e6, TEXT)
    assert compression.wanted
    assert link.wire < 2 * WARM_UP


def test_a_slow_link_does_not_get_noise_compressed() -> None:
    compression, link = auto(20e6, NOISE)
    assert not compression.wanted
    assert link.packed == 0 and link.wire == 4 * INTERVAL


@pytest.mark.parametrize("data", [TEXT, NOISE])
def test_a_fast_link_is_never_even_tried(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compression, "compress", lambda *_: pytest.fail("compressed"))
    compression, link = auto(2 * FAST_LINK, data)
    assert not compression.wanted and link.wire == 4 * INTERVAL


def test_nothing_is_decided_before_the_buffers_are_full() -> None:
    compression, _ = auto(1e6, TEXT, WARM_UP - MAX_DATA)
    assert not compression.wanted


def test_a_link_that_becomes_fast_gets_plain_bytes() -> None:
    compression, link = auto(20e6, TEXT)
    link.rate = 1000 * FAST_LINK
    link.send(TEXT, 4 * INTERVAL)
    assert not compression.wanted


def test_a_compressor_slower_than_the_link_is_left_alone() -> None:
    compression = Compression("auto")
    compression.compress(TEXT)
    slow = 1e6 * THREADS
    compression._zstd.value = slow  # the machine is busy with other things
    compression.sent(WARM_UP, WARM_UP, WARM_UP / (2 * slow))
    assert not compression.wanted


@pytest.mark.parametrize("level", ["1", "19"])
def test_a_level_is_obeyed_whatever_the_link(level: str) -> None:
    compression = Compression(level)
    assert compression.wanted
    compression.sent(INTERVAL, INTERVAL, 0.001)
    assert compression.wanted


def test_off_is_off() -> None:
    compression = Compression("off")
    FakeLink(compression, 1000).send(TEXT, 2 * WARM_UP)
    assert not compression.wanted


@pytest.mark.parametrize("choice", ["auto", "3"])
def test_a_chunk_becomes_one_frame_that_tells_its_size(choice: str) -> None:
    packed = Compression(choice).compress(TEXT)
    assert packed is not None and len(packed) < len(TEXT) // 10
    assert zstandard.frame_content_size(packed) == len(TEXT)
    assert zstandard.ZstdDecompressor().decompress(packed) == TEXT


def test_what_does_not_shrink_is_left_as_it_is() -> None:
    assert Compression("1").compress(NOISE) is None
    assert Compression("1").compress(b"x") is None


@pytest.mark.parametrize("choice", ["", "0", "20", "-1", "fast", "1.5", "²", "99999999999999999999"])
def test_another_choice_is_refused(choice: str) -> None:
    with pytest.raises(UsageError, match="write off, auto or a zstd level from 1 to 19"):
        Compression(choice)
