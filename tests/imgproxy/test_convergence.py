"""When to end pre-dumping: by the predicted freeze, by lack of progress, by the limit; or by order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imgproxy.convergence import LIMIT, PROGRESS, Convergence, RoundFigures

pytestmark = pytest.mark.t0

MIB = 1 << 20
NETWORK = 100 * MIB  #: bytes a second


def run(changing: float, target: float | None, limit: int = LIMIT, size: float = 1000 * MIB) -> tuple[Convergence, str]:
    """Pre-dump a process that changes `changing` bytes of its `size` a second until that is ended; why."""
    convergence, now, due = Convergence(target, limit), 0.0, size
    while (reason := convergence.reason_to_stop(now)) is None:
        began, now = now, now + due / NETWORK
        convergence.add(RoundFigures(int(due), began, now))
        due = min(size, changing * (now - began))
    return convergence, reason


def test_the_prediction_is_that_of_a_steady_process() -> None:
    """What it changes at 10 MiB/s while the last round goes over: a tenth of that round, at 100 MiB/s."""
    convergence = Convergence(0.3)
    assert convergence.predicted(0.0) is None
    convergence.add(RoundFigures(1000 * MIB, 0.0, 10.0))
    assert convergence.predicted(10.0) is None, "what was there from the begin says nothing about what changes"
    convergence.add(RoundFigures(100 * MIB, 10.0, 11.0))
    assert convergence.predicted(11.0) == pytest.approx(0.1)
    assert convergence.predicted(12.0) == pytest.approx(0.2), "it goes on changing while we wait"


def test_it_stops_as_soon_as_the_freeze_is_short_enough() -> None:
    convergence, reason = run(changing=10 * MIB, target=0.3)
    assert [one.size for one in convergence.rounds] == [1000 * MIB, 100 * MIB]
    assert reason == "a freeze of 0.100 s is expected, 0.300 s are allowed"
    convergence, reason = run(changing=10 * MIB, target=0.01)
    assert [one.size for one in convergence.rounds] == [1000 * MIB, 100 * MIB, 10 * MIB]
    assert reason == "a freeze of 0.010 s is expected, 0.010 s are allowed"


@pytest.mark.parametrize("changing", [NETWORK * (PROGRESS + 0.01), NETWORK, 3 * NETWORK])
def test_it_stops_where_there_is_no_progress(changing: float) -> None:
    """Three rounds show it: the first has everything, so the second is smaller by itself."""
    convergence, reason = run(changing, target=0.3)
    assert len(convergence.rounds) == 3
    assert reason.startswith("the rounds do not get smaller")


def test_it_stops_at_the_limit() -> None:
    convergence, reason = run(changing=NETWORK * (PROGRESS - 0.01), target=1e-9)
    assert (len(convergence.rounds), reason) == (LIMIT, f"{LIMIT} rounds are enough")


@pytest.mark.parametrize("changing", [0, NETWORK / 100, NETWORK, 3 * NETWORK])
@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_a_number_of_rounds_is_an_order(changing: float, limit: int) -> None:
    convergence, reason = run(changing, target=None, limit=limit)
    assert (len(convergence.rounds), reason) == (limit, f"{limit} rounds are enough")


def test_a_process_that_changes_nothing() -> None:
    """A round without a byte, in no time at all, is one that was worth it."""
    convergence = Convergence(0.0)
    convergence.add(RoundFigures(MIB, 0.0, 1.0))
    convergence.add(RoundFigures(0, 1.0, 1.0))
    assert convergence.predicted(1.0) == 0
    assert convergence.reason_to_stop(1.0) is not None


@given(
    changing=st.floats(0, 10 * NETWORK),
    target=st.none() | st.floats(0, 100),
    limit=st.integers(1, 20),
    size=st.floats(1, 1 << 40),
)
def test_it_always_ends_and_never_before_it_can_know(
    changing: float, target: float | None, limit: int, size: float
) -> None:
    convergence, reason = run(changing, target, limit, size)
    assert min(2, limit) <= len(convergence.rounds) <= limit
    assert reason


def test_a_copy_is_a_part_of_the_freeze_that_stays() -> None:
    convergence = Convergence(0.1)
    convergence.add(RoundFigures(1000 * MIB, 0.0, 10.0, 1.0))
    convergence.add(RoundFigures(10 * MIB, 10.0, 11.5, 1.0))
    predicted = convergence.predicted(11.5)
    assert predicted == pytest.approx(1.0 + (1.0 * 1.5) / 100), "at the rate of the first: 100 MiB/s"
    reason = convergence.reason_to_stop(11.5)
    assert reason == "a copy alone takes 1.000 s: more of them cannot shorten the freeze"


def test_copies_go_on_while_they_shorten_the_freeze() -> None:
    convergence = Convergence(0.1)
    convergence.add(RoundFigures(1000 * MIB, 0.0, 10.0, 1.0))
    convergence.add(RoundFigures(300 * MIB, 10.0, 13.0, 1.0))
    assert convergence.reason_to_stop(13.0) is None
