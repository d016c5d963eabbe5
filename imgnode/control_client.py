"""Asking a program on its control socket, blocking, with the standard library alone.

For the action scripts, which start while a process is frozen, and for `status` and the like.
"""

import json
import socket
from collections.abc import Iterator

TYPE_CHECKING = False  # not from `typing`: importing it takes longer than all that an action script does
if TYPE_CHECKING:
    from typing import Any

#: Longest line taken: names, numbers, a path or two; `status` answers one line per session.
MAX_LINE = 1 << 16

Request = dict[str, "Any"]


def parse_line(line: bytes) -> Request:
    """One JSON object, or ValueError."""
    request = json.loads(line)
    if not isinstance(request, dict):
        raise ValueError("a request that is not an object")
    return request


class ControlClient:
    """The blocking side: ask, then read one or more answers."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.connect(path)
        except OSError:
            self._sock.close()
            raise
        self._lines = self._sock.makefile("rb")

    def fileno(self) -> int:
        """For poll."""
        return self._sock.fileno()

    def ask(self, request: Request) -> None:
        """Send the request."""
        self._sock.sendall(json.dumps(request).encode() + b"\n")

    def answer(self) -> Request | None:
        """The next answer; None when the program has gone away."""
        try:
            line = self._lines.readline(MAX_LINE)
        except ConnectionResetError:
            return None
        return parse_line(line) if line.endswith(b"\n") else None

    def answers(self) -> Iterator[Request]:
        """All answers until the program hangs up."""
        while (answer := self.answer()) is not None:
            yield answer

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._sock.close()
