"""Runs one operation to its end: what all three share of errors, signals and preparation.

Every failure ends in one line on stderr and a non-zero exit code, so that a caller's `set -o pipefail` notices it.
"""

import signal
import sys
from collections.abc import Awaitable, Callable, Iterator

import trio

from criu_image_streamer.cli import PROGRAM, Options
from criu_image_streamer.progress import Progress
from imgcache.arena import StoreFull
from imgnode.nursery import flat_nursery
from imgwire.errors import RemoteProtocolError, UsageError
from transform.errors import TransformError

_REPORTED = (UsageError, RemoteProtocolError, TransformError, StoreFull, OSError, trio.BrokenResourceError)


def perform(options: Options) -> int:
    """Run the operation; the exit code."""
    try:
        return trio.run(_until_signalled, options)
    except (*_REPORTED, BaseExceptionGroup) as group:
        error = next(_leaves(group))
        if not isinstance(error, _REPORTED):
            raise
        print(f"{PROGRAM}: {_line(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


async def _until_signalled(options: Options) -> int:
    """The operation, or 128 plus the number of the signal that ended it (its socket file is gone then)."""
    code = 0
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with flat_nursery() as nursery:

            async def stop() -> None:
                nonlocal code
                async for number in signals:
                    code = 128 + number
                    nursery.cancel_scope.cancel()

            nursery.start_soon(stop)
            await _operation(options.operation)(options, Progress(options.progress_fd))
            nursery.cancel_scope.cancel()
    return code


def _operation(name: str) -> Callable[[Options, Progress], Awaitable[None]]:
    if name == "capture":
        from criu_image_streamer.capture import capture

        return capture
    from criu_image_streamer import restore

    return restore.serve if name == "serve" else restore.extract


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__
