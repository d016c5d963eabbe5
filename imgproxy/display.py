"""What a person sees while a migration goes on: a bar on a terminal, lines elsewhere, JSON objects on request."""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

from imgnode.command_line import show_size
from imgproxy.convergence import RoundFigures
from imgproxy.ingest.rounds import RoundsIngest
from imgproxy.session import SourceSession
from imgproxy.summary import Summary
from imgwire.messages import PAGE
from imgwire.states import SessionState

#: Seconds between two looks at the counters: what an eye can follow.
REFRESH = 0.1


class Display(ABC):
    """Shows phases, progress and the summary of one session."""

    @abstractmethod
    def phase(self, text: str) -> None:
        """What is being done from now on."""

    @abstractmethod
    def progress(self, done: int, total: int) -> None:
        """`done` bytes of about `total`."""

    @abstractmethod
    def round(self, figures: RoundFigures, predicted: float | None) -> None:
        """A pre-dump has ended; `predicted`: seconds that a dump now would freeze the process, if that can be told."""

    @abstractmethod
    def summary(self, summary: Summary) -> None:
        """How it ended."""

    @abstractmethod
    def close(self) -> None:
        """Leave the screen in order."""


class LineDisplay(Display):
    """A line for each phase."""

    def phase(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def progress(self, done: int, total: int) -> None:
        return

    def round(self, figures: RoundFigures, predicted: float | None) -> None:
        self.phase(round_line(figures, predicted))

    def summary(self, summary: Summary) -> None:
        print_lines(summary)

    def close(self) -> None:
        return


class JsonDisplay(Display):
    """One JSON object a line on standard output."""

    def __init__(self) -> None:
        self._last = -1

    def phase(self, text: str) -> None:
        self._print({"event": "phase", "phase": text})

    def progress(self, done: int, total: int) -> None:
        if done != self._last:
            self._last = done
            self._print({"event": "progress", "bytes": done, "expected": total})

    def round(self, figures: RoundFigures, predicted: float | None) -> None:
        pages = {"skipped": figures.skipped, "zero": figures.zero}
        seconds = {"seconds": figures.ended - figures.began, "frozen": figures.frozen, "predicted": predicted}
        self._print({"event": "round", "bytes": figures.size, **pages, **seconds})

    def summary(self, summary: Summary) -> None:
        self._print(summary.as_dict())

    def close(self) -> None:
        return

    def _print(self, record: dict[str, object]) -> None:
        print(json.dumps(record), flush=True)


def round_line(figures: RoundFigures, predicted: float | None) -> str:
    """A round, for people."""
    expected = "" if predicted is None else f"; a freeze of {predicted:.3f} s is expected now"
    seconds = figures.ended - figures.began
    there = f" ({show_size(figures.skipped * PAGE)} were there, {show_size(figures.zero * PAGE)} of zeroes)"
    frozen = f", {figures.frozen:.3f} s of it frozen" if figures.frozen else ""
    return (
        f"{'copy' if figures.frozen else 'pre-dump'} {show_size(figures.size)}"
        f"{there if figures.skipped or figures.zero else ''} in {seconds:.3f} s{frozen}, "
        f"{show_size(figures.rate)}/s{expected}"
    )


def choose(as_json: bool) -> Display:
    """The display that fits where the output goes."""
    if as_json:
        return JsonDisplay()
    if not sys.stderr.isatty():
        return LineDisplay()
    from imgproxy.terminal_display import TerminalDisplay  # with its library, which takes long to load

    return TerminalDisplay()


async def follow(session: SourceSession, display: Display) -> None:
    """Show what the session does until cancelled."""
    shown = ""
    while True:
        phase = _phase(session)
        if phase != shown:
            if _was_following(session) and not shown.startswith(SessionState.FOLLOWING):
                display.phase(_following(session))  # if only for a moment: the next word came with that one
            display.phase(_following(session) if session.view.state is SessionState.FOLLOWING else phase)
            shown = phase
        display.progress(session.sender.size, session.config.need)
        with trio.move_on_after(REFRESH):
            await session.view.changes.wait_until(_differs(session, shown))


def _was_following(session: SourceSession) -> bool:
    return SessionState.FOLLOWING in session.view.times and session.view.state is not SessionState.FOLLOWING


def _differs(session: SourceSession, shown: str) -> Callable[[], bool]:
    return lambda: _phase(session) != shown


def _phase(session: SourceSession) -> str:
    state = session.view.state
    if state is SessionState.FOLLOWING:
        return str(state) if session.channel.connected else "following, but cut off"
    if state is not SessionState.RECEIVING:
        return str(state)
    if not session.channel.connected:
        return "reconnecting"
    if session.ingest.started_at is not None:
        return "dumping"
    pre_dump = session.ingest.pre_dump if isinstance(session.ingest, RoundsIngest) else 0
    return f"pre-dump {pre_dump}" if pre_dump else "connected"


def _following(session: SourceSession) -> str:
    """What a person is told when the process runs there without all of its memory."""
    if session.post_copy is None:
        return "runs there, its memory is being put in its place; the copy here is kept until that is done"
    left, total = show_size(session.post_copy.left), show_size(session.post_copy.total)
    link = "" if session.channel.connected else "; the link is cut and will be made again"
    return f"runs there, {left} of {total} still here{link}; this node must stay up"


def print_lines(summary: Summary) -> None:
    """The summary, on standard output."""
    for line in summary.lines():
        print(line)
