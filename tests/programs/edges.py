"""What `edge` reports of itself: for each of its processes, whether its memory is of one moment.

A test demands a verification (SIGUSR1 to the root, which tells the others), waits until all have made it, and asserts
what they found. `assert_right` says what a process that was moved must show.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

REPORT_LINE = 256
#: Where the small regions of --churn are, and nothing else.
ARENA = 0x1000_0000_0000

_WORD = re.compile(r"(?P<name>[a-z]+)=(?P<value>[0-9a-f]+)")
_HEXADECIMAL = ("at", "base")


@dataclass(frozen=True)
class Edge:
    """What one process says. `at` is the address of the first page that was wrong, `base` that of its first region."""

    state: str
    pid: int
    steps: int
    laps: int
    demanded: int
    edges: int
    wrong: int
    at: int
    base: int
    changes: int
    generation: int
    forks: int
    beat: int


def parse(text: str) -> list[Edge] | None:
    """Its report, root first; None while it has not begun or a line is being written. AssertionError if it gave up."""
    lines = [text[at : at + REPORT_LINE] for at in range(0, len(text), REPORT_LINE)]
    read = [_parse(line) for line in lines]
    known = [one for one in read if one is not None]
    return known if known and len(known) == len(lines) else None


def _parse(line: str) -> Edge | None:
    assert not line.startswith("ERROR"), f"edge: {line.strip()}"
    numbers = {
        found["name"]: int(found["value"], 16 if found["name"] in _HEXADECIMAL else 10)
        for found in _WORD.finditer(line)
    }
    if "end" not in numbers or numbers.pop("end") != numbers["steps"]:
        return None
    return Edge(line.split(maxsplit=1)[0], **numbers)


def have_verified(before: Sequence[Edge], now: Sequence[Edge]) -> bool:
    """Whether each process has verified its memory since `before` on demand."""
    return all(new.demanded > before[0].demanded for new in now)


def assert_right(reports: Sequence[Edge]) -> None:
    """No page was ever wrong in any process, and no region had two edges."""
    for number, one in enumerate(reports):
        assert one.wrong == 0, f"process {number}: {one.wrong} wrong pages, the first at {one.at:#x}: {one}"
        assert one.edges <= 1, f"process {number}: {one.edges} edges: {one}"
