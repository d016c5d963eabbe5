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

#: Most bytes of answers that wait to be looked at.
MAX_RECEIVED = 2 * MAX_LINE

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
        self._received = b""
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._sock.connect(path)
        except OSError:
            self._sock.close()
            raise

    def fileno(self) -> int:
        """For poll. A line that `has_answer` knows of has been read already and does not show there."""
        return self._sock.fileno()

    @property
    def has_answer(self) -> bool:
        """Whether the next answer has come together with the one before."""
        return b"\n" in self._received

    def ask(self, request: Request) -> None:
        """Send the request."""
        self._sock.sendall(json.dumps(request).encode() + b"\n")

    def answer(self) -> Request | None:
        """The next answer; None when the program has gone away. ValueError for what is no answer."""
        while not self.has_answer:
            try:
                data = self._sock.recv(MAX_LINE)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._received += data
            if len(self._received) > MAX_RECEIVED:
                raise ValueError("an answer that does not end")
        line, _, self._received = self._received.partition(b"\n")
        return parse_line(line)

    def only_answer(self, request: Request) -> Request | None:
        """Ask, take one answer, and hang up."""
        try:
            self.ask(request)
            return self.answer()
        finally:
            self.close()

    def answers(self) -> Iterator[Request]:
        """All answers until the program hangs up."""
        while (answer := self.answer()) is not None:
            yield answer

    def close(self) -> None:
        """Hang up."""
        self._sock.close()
