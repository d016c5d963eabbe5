"""What the caller is told while an operation runs: a line when CRIU may start, one when it has, and the figures.

The caller may stop listening at any time; that is not our failure.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass

from imgwire.errors import UsageError

SOCKET_READY = "socket-init"
CHECKPOINT_STARTED = "checkpoint-start"


@dataclass(frozen=True)
class ShardFigures:
    """How much a shard carried, and in how many seconds."""

    size: int
    seconds: float


class Progress:
    """Lines to the descriptor that `--progress-fd` names."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        try:
            os.fstat(fd)
        except OSError as error:
            raise UsageError(f"--progress-fd {fd}: {error.strerror}; open it before") from error

    def say(self, line: str) -> None:
        """Tell one line."""
        try:
            os.write(self._fd, line.encode() + b"\n")
        except BrokenPipeError:
            return

    def figures(self, shards: Sequence[ShardFigures]) -> None:
        """Tell what the shards carried, in their order on the command line."""
        told = [{"size": each.size, "transfer_duration_millis": round(each.seconds * 1000)} for each in shards]
        self.say(json.dumps({"shards": told}, separators=(",", ":")))
