"""Which state may follow which: the whole table, from both ends."""

from itertools import product

import pytest

from imgwire.errors import LocalProtocolError
from imgwire.states import AFTER_COMMIT, RUNS_THERE, SessionState, advance, is_final

pytestmark = pytest.mark.t0

ALLOWED = {
    ("receiving", "complete"),
    ("receiving", "aborted"),
    ("complete", "restored"),
    ("complete", "committed"),
    ("complete", "aborted"),
    ("restored", "complete"),
    ("restored", "committed"),
    ("restored", "aborted"),
    ("committed", "running"),
    ("committed", "following"),
    ("committed", "lost"),
    ("following", "running"),
    ("following", "lost"),
}


@pytest.mark.parametrize(("now", "then"), list(product(SessionState, SessionState)))
def test_the_table(now: SessionState, then: SessionState) -> None:
    if (now, then) in ALLOWED:
        assert advance(now, then) is then
    else:
        with pytest.raises(LocalProtocolError, match=f"{now} cannot become {then}"):
            advance(now, then)


def test_the_final_states_are_those_that_nothing_follows() -> None:
    assert {state for state in SessionState if is_final(state)} == {"running", "lost", "aborted"}


def test_after_the_commit_nothing_leads_back() -> None:
    reached, ahead = set(), [SessionState.COMMITTED]
    while ahead:
        state = ahead.pop()
        reached.add(state)
        ahead += [then for then in SessionState if (state, then) in ALLOWED and then not in reached]
    assert reached == AFTER_COMMIT
    assert RUNS_THERE < AFTER_COMMIT
