"""What is written down of a session: its states in the journal, before they count, and in the metrics, how long each
took."""

import time
from pathlib import Path

import structlog

from imgnode.journal import Journal
from imgnode.metrics import Metrics
from imgwire.states import AFTER_COMMIT, SessionState


class Record:
    """Of one session."""

    def __init__(self, journal: Journal, metrics: Metrics, name: str) -> None:
        self._journal, self._metrics = journal, metrics
        self._since: dict[SessionState, float] = {}  # when each state was reached
        self._log = structlog.get_logger().bind(session=name)

    @property
    def directory(self) -> Path:
        """Where the journal is."""
        return Path(self._journal.directory)

    def write(self, state: SessionState, **facts: object) -> None:
        """Into the journal. OSError if it cannot be written; what is not ours to decide goes on without it: the source
        knows it, too."""
        try:
            self._journal.write(state, **facts)
        except OSError as error:
            if state not in AFTER_COMMIT | {SessionState.ABORTED}:
                raise
            self._log.error("not written down", state=state, error=str(error))

    def reached(self, state: SessionState) -> None:
        """The state counts from now on."""
        now = self._since[state] = time.monotonic()
        if state is SessionState.RESTORED and SessionState.COMPLETE in self._since:
            self._metrics.restore_seconds.observe(now - self._since[SessionState.COMPLETE])
        if state is SessionState.COMMITTED and SessionState.RESTORED in self._since:
            self._metrics.commit_seconds.observe(now - self._since[SessionState.RESTORED])

    def forget(self) -> None:
        """Nobody will ask."""
        self._journal.remove()
