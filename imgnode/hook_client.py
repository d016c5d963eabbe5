"""The action scripts' side of a conversation with their program, while CRIU waits for them. Standard library only.

CRIU may be killed while its script runs; the script notices at once, on a pidfd.
"""

import os
import select

from imgnode import proc
from imgnode.control_client import ControlClient, Request


def connect(path: str) -> ControlClient | None:
    """The program whose control socket is at `path`; None if nobody listens there."""
    try:
        return ControlClient(path)
    except (FileNotFoundError, ConnectionRefusedError):
        return None


class CriuWatch:
    """CRIU's life, for the script that it has started."""

    def __init__(self, pid: int) -> None:
        try:
            self._fd = proc.open_pidfd(proc.identify(pid))
        except ProcessLookupError:
            self._fd = None

    def close(self) -> None:
        """Watch no longer."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def keep_alone(self) -> None:
        """Close every descriptor but this one: those of CRIU's must not be kept open by who only watches."""
        kept = os.dup2(self._fd, 3) if self._fd is not None and self._fd != 3 else self._fd
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nowhere, fd)
        os.closerange(4 if kept is not None else 3, os.sysconf("SC_OPEN_MAX"))
        self._fd = kept

    def died_within(self, milliseconds: int) -> bool:
        """Whether CRIU is dead, or dies within that time."""
        if self._fd is None:
            return True
        poll = select.poll()
        poll.register(self._fd, select.POLLIN)
        return bool(poll.poll(milliseconds))

    def answer(self, client: ControlClient) -> Request | None:
        """The program's next answer; None if it hung up or CRIU died."""
        if client.has_answer:
            return client.answer()
        poll = select.poll()
        poll.register(client.fileno(), select.POLLIN)
        if self._fd is not None:
            poll.register(self._fd, select.POLLIN)
        ready = dict(poll.poll())
        return client.answer() if client.fileno() in ready else None
