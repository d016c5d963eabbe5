"""When to end pre-dumping: each round costs time and network, and pays by making the last one, the freeze, shorter.

A round may itself freeze the process for a moment (a copy, where the kernel tracks no changes); the dump does too, so
that much of its freeze no round takes away.

What a process changes while a round is under way is what the next one carries. So the freeze of a dump that begins now
can be foretold: what has been changed since the last round began, at the rate at which the process changed its memory
between the two rounds before, over the rate at which the last round went. Pure: times and sizes in, a reason to stop
out.
"""

from dataclasses import dataclass

#: A round that is not smaller than the one before by this factor shows that there is no progress.
PROGRESS = 0.75
#: A freeze of this many times what a copy alone takes is not made shorter by another one.
FLOOR = 1.2
#: Rounds by default: if the process changes half of its memory during each, the last one is under a thousandth.
LIMIT = 10


@dataclass(frozen=True)
class RoundFigures:
    """A round that went well: bytes that went out, when it took the process's memory and when it ended (seconds)."""

    size: int
    began: float
    ended: float
    frozen: float = 0.0  #: seconds that the process stood still for it
    skipped: int = 0  #: pages that the cache had
    zero: int = 0  #: pages of zeroes

    @property
    def rate(self) -> float:
        """Bytes per second."""
        return self.size / max(self.ended - self.began, 1e-3)


class Convergence:
    """Rounds so far, and whether another one pays. `target`: seconds that the process may be frozen; None: `limit`
    rounds are an order, whether they pay or not."""

    def __init__(self, target: float | None, limit: int = LIMIT) -> None:
        self.target, self.limit = target, limit
        self.rounds: list[RoundFigures] = []

    def add(self, figures: RoundFigures) -> None:
        """Another round has ended."""
        self.rounds.append(figures)

    def predicted(self, now: float) -> float | None:
        """Seconds that a dump which begins now would freeze the process; None before two rounds."""
        if len(self.rounds) < 2:
            return None
        before, last = self.rounds[-2:]
        if not last.size:
            return 0.0
        changing = last.size / max(last.began - before.began, 1e-3)
        # A copy reads everything, however little goes out: what the link takes shows in the round with the most.
        rate = max(self.rounds, key=lambda one: one.size).rate if last.frozen else last.rate
        return last.frozen + changing * (now - last.began) / rate

    def reason_to_stop(self, now: float) -> str | None:
        """Why the next one should be the dump itself; None: another pre-dump pays."""
        if self.target is not None and (reason := self._reason_by_figures(self.target, now)):
            return reason
        return f"{self.limit} rounds are enough" if len(self.rounds) >= self.limit else None

    def _reason_by_figures(self, target: float, now: float) -> str | None:
        predicted = self.predicted(now)
        if predicted is not None and predicted <= target:
            return f"a freeze of {predicted:.3f} s is expected, {target:.3f} s are allowed"
        if predicted is not None and predicted <= FLOOR * self.rounds[-1].frozen:
            return f"a copy alone takes {self.rounds[-1].frozen:.3f} s: more of them cannot shorten the freeze"
        if len(self.rounds) > 2 and self.rounds[-1].size > PROGRESS * self.rounds[-2].size:
            return "the rounds do not get smaller: the process changes its memory as fast as it is sent"
        return None
