"""The limit on the rate, by a clock that costs nothing."""

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from imgnode.pacing import BURST, MIN_CHUNK, Pacer
from tests.playbook import virtual_time

pytestmark = pytest.mark.t0


@virtual_time
async def test_without_a_limit_nothing_waits() -> None:
    pacer = Pacer(None)
    assert not pacer.limits and pacer.largest_chunk(1 << 30) == 1 << 30
    await pacer.pay(1 << 40)
    assert trio.current_time() == 0


@given(st.integers(1000, 10**9), st.lists(st.integers(0, 1 << 20), min_size=1, max_size=20))
def test_the_rate_is_kept(rate: int, sizes: list[int]) -> None:
    async def run() -> None:
        pacer = Pacer(rate)
        for size in sizes:
            await pacer.pay(size)
        assert sum(sizes) / rate - BURST - 1e-6 <= trio.current_time() <= sum(sizes) / rate + 1e-6

    trio.run(run, clock=MockClock(autojump_threshold=0))


@virtual_time
async def test_idle_time_earns_no_more_than_a_burst() -> None:
    pacer = Pacer(1000)
    await trio.sleep(3600)
    started = trio.current_time()
    await pacer.pay(2000)
    assert trio.current_time() - started == pytest.approx(2 - BURST)


@pytest.mark.parametrize(("rate", "chunk"), [(1, MIN_CHUNK), (10**6, 50_000), (10**12, 1 << 20)])
def test_chunks_take_about_a_burst(rate: int, chunk: int) -> None:
    assert Pacer(rate).limits
    assert Pacer(rate).largest_chunk(1 << 20) == chunk
    assert Pacer(rate).largest_chunk(10) == 10
