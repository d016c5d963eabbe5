"""When to compress: decided by rates that the test makes up."""

import pytest
import zstandard

from imgproxy.compression import FAST_LINK, INTERVAL, TRIAL, TRIAL_EVERY, WARM_UP, Compression
from imgwire.errors import UsageError
from imgwire.frames import MAX_DATA
from tests.playbook import random_bytes

pytestmark = pytest.mark.t0

TEXT = (b"compressible " * 100_000)[:MAX_DATA]
NOISE = random_bytes(MAX_DATA)


class FakeLink:
    """Sends chunks as the sender does, on a link and with a compressor of certain rates, in bytes per second."""

    def __init__(self, compression: Compression, link: float, zstd: float = 800e6, ratio: float = 3.0) -> None:
        self.compression, self.link, self.zstd, self.ratio = compression, link, zstd, ratio
        self.now = 1000.0
        self.plain = self.packed = 0  # bytes of image
        self.changes = 0

    def send(self, total: int) -> "FakeLink":
        for _ in range(total // MAX_DATA):
            on = self.compression.wanted
            if on:
                self.packed += MAX_DATA
                self.now += MAX_DATA / min(self.zstd, self.link * self.ratio)
            else:
                self.plain += MAX_DATA
                self.now += MAX_DATA / self.link
            self.compression.sent(MAX_DATA, self.now)
            self.changes += self.compression.wanted is not on
        return self


def auto(link: float, **rates: float) -> FakeLink:
    return FakeLink(Compression("auto"), link, **rates).send(1 << 30)


def test_a_slow_link_gets_compressible_data_compressed() -> None:
    sent = auto(20e6)
    assert sent.compression.wanted
    assert sent.plain <= WARM_UP + 3 * TRIAL, "and soon"


def test_a_slow_link_does_not_get_noise_compressed() -> None:
    sent = auto(20e6, ratio=1.0)
    assert not sent.compression.wanted
    assert 0 < sent.packed <= 4 * TRIAL


def test_a_fast_link_is_never_even_tried() -> None:
    assert auto(1.1 * FAST_LINK).packed == 0


def test_a_compressor_slower_than_the_link_is_left_alone() -> None:
    sent = auto(500e6, zstd=300e6)
    assert not sent.compression.wanted
    assert sent.packed <= 4 * TRIAL


def test_nothing_is_decided_before_the_buffers_are_full() -> None:
    assert FakeLink(Compression("auto"), 1e6).send(WARM_UP).changes == 0


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        ({}, {"link": 1000 * FAST_LINK}, False),
        ({}, {"ratio": 1.0}, False),
        ({"link": FAST_LINK / 1.3}, {"link": 20e6}, True),
        ({"ratio": 1.0}, {"ratio": 4.0}, True),
    ],
    ids=["fast link", "noise", "slow link", "text"],
)
def test_what_changes_is_noticed(before: dict[str, float], after: dict[str, float], wanted: bool) -> None:
    sent = auto(**{"link": 20e6, **before})
    assert sent.compression.wanted is not wanted
    for name, value in after.items():
        setattr(sent, name, value)
    sent.send((TRIAL_EVERY + 3) * INTERVAL)
    assert sent.compression.wanted is wanted


def test_it_does_not_go_back_and_forth_between_equals() -> None:
    assert auto(400e6, zstd=400e6, ratio=1.0).changes <= 6


@pytest.mark.parametrize("level", ["1", "19"])
def test_a_level_is_obeyed_whatever_the_link(level: str) -> None:
    compression = Compression(level)
    assert compression.wanted
    assert FakeLink(compression, 1000 * FAST_LINK).send(4 * INTERVAL).plain == 0


def test_off_is_off() -> None:
    assert FakeLink(Compression("off"), 1000).send(4 * INTERVAL).packed == 0


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
