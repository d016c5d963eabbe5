"""What a migration came to: how long the process stood still, what was moved, where the time went."""

from dataclasses import dataclass
from itertools import pairwise

from imgnode.command_line import show_size
from imgproxy.session import SourceSession
from imgwire.messages import PAGE
from imgwire.states import SessionState


@dataclass(frozen=True)
class Summary:
    """Durations in seconds, sizes in bytes."""

    session: str
    outcome: str
    reason: str
    frozen: float | None  #: from the first image of the frozen tree to its first instruction at the destination
    foretold: float | None  #: what was expected of it when the rounds ended, but for the restore
    image_bytes: int
    rounds: list[int]  #: bytes that went out for each round and for the dump
    wire_bytes: int  #: on the link, headers included, compressed where it was
    pages: dict[str, int] | None  #: of all rounds, with dedup: sent, skipped (the cache had them), zero
    rate: float | None  #: image bytes per second of the dump, while its images came
    bytes_by_kind: dict[str, int]
    phases: dict[str, float]
    reconnects: int

    def as_dict(self) -> dict[str, object]:
        """For `--json`."""
        return {"event": "summary", **vars(self)}

    def lines(self) -> list[str]:
        """For people."""
        kinds = sorted(self.bytes_by_kind.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{kind} {show_size(size)}" for kind, size in kinds[:5])
        others = sum(size for _, size in kinds[5:])
        lines = [f"{self.outcome}" + (f": {self.reason}" if self.reason else "")]
        if self.frozen is not None:
            expected = "" if self.foretold is None else f" ({self.foretold:.3f} s without the restore were foretold)"
            lines.append(f"frozen   {self.frozen:.3f} s{expected}")
        lines.append(
            f"images   {show_size(self.image_bytes)} ({shown}" + (f", others {show_size(others)})" if others else ")")
        )
        if len(self.rounds) > 1:
            lines.append("rounds   " + ", ".join(show_size(size) for size in self.rounds))
        if self.pages is not None:
            sent, skipped, zero = (show_size(self.pages[name] * PAGE) for name in ("sent", "skipped", "zero"))
            lines.append(f"pages    {sent} sent, {skipped} were there already, {zero} of zeroes")
        if self.rate:
            lines.append(f"rate     {show_size(self.rate)}/s, {show_size(self.wire_bytes)} on the link")
        if self.phases:
            lines.append("time     " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in self.phases.items()))
        if self.reconnects:
            lines.append(f"link     cut and joined again {self.reconnects} times")
        return lines


def summarise(session: SourceSession) -> Summary:
    """The summary of a session that has ended."""
    marks = _marks(session)
    start, sent = marks.get("dump"), marks.get("sent")
    running = _running(session)
    rounds = session.sender.round_sizes()
    lost = session.view.state is SessionState.LOST
    return Summary(
        session=session.name,
        outcome="lost" if lost else str(session.handover.decision),
        reason=session.view.detail if lost else session.handover.reason,
        frozen=running - start if running is not None and start is not None else None,
        foretold=session.foretold,
        image_bytes=session.sender.size,
        rounds=rounds,
        wire_bytes=session.channel.bytes_sent,
        pages=vars(session.sender.all_pages) if session.sender.all_pages else None,
        rate=session.sender.round_bytes / (sent - start)
        if start is not None and sent is not None and sent > start
        else None,
        bytes_by_kind=dict(session.sender.bytes_by_kind),
        phases=_phases(marks),
        reconnects=max(0, session.channel.reconnects),
    )


def _running(session: SourceSession) -> float | None:
    """When it began to run there, with all its memory or with the first of it."""
    times = session.view.times
    return times.get("following", times.get("running"))


def _marks(session: SourceSession) -> dict[str, float]:
    """Moments, by trio's clock, in the order in which they come."""
    hand, view = session.handover.times, session.view.times
    marks = {
        "dump": session.ingest.started_at,
        "sent": hand.get("images-sent"),
        "complete": view.get("complete"),
        "restored": view.get("restored"),
        "committed": hand.get("committed"),
        "running": view.get("running"),
    }
    return {name: moment for name, moment in marks.items() if moment is not None}


#: What the time before each moment was spent on.
_PHASES = {
    "sent": "dump and send",
    "complete": "last bytes",
    "restored": "restore",
    "committed": "give up here",
    "running": "resume there",
}


def _phases(marks: dict[str, float]) -> dict[str, float]:
    names = list(marks)
    return {
        _PHASES[after]: max(0.0, marks[after] - marks[before]) for before, after in pairwise(names) if after in _PHASES
    }
