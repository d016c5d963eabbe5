"""What is shown of a session: every state that a person must know of, however soon the next one follows."""

from types import SimpleNamespace
from typing import cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from imgproxy.display import LineDisplay, follow
from imgproxy.session import SourceSession
from imgproxy.source import CacheView
from imgwire.messages import State
from imgwire.states import SessionState

pytestmark = pytest.mark.t0


class Shown(LineDisplay):
    """Keeps the phases."""

    def __init__(self) -> None:
        self.phases: list[str] = []

    def phase(self, text: str) -> None:
        self.phases.append(text)

    def progress(self, done: int, total: int) -> None:
        return


def a_session(view: CacheView) -> SourceSession:
    """As far as it is looked at."""
    made = SimpleNamespace(
        view=view,
        channel=SimpleNamespace(connected=True),
        sender=SimpleNamespace(size=0),
        config=SimpleNamespace(need=0),
        ingest=SimpleNamespace(started_at=None),
        post_copy=None,
    )
    return cast(SourceSession, made)


@pytest.mark.parametrize("together", [True, False])
async def test_it_ran_without_its_memory_if_only_for_a_moment(together: bool) -> None:
    view, shown = CacheView(), Shown()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, a_session(view), shown)
        for state in (SessionState.COMPLETE, SessionState.FOLLOWING, SessionState.RUNNING):
            view.on_message(State(state, ""))
            if not together:
                await wait_all_tasks_blocked()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    following = [
        phase for phase in shown.phases if phase.startswith("runs there, its memory is being put in its place")
    ]
    assert len(following) == 1
    assert shown.phases[-2:] == [*following, "running"]
