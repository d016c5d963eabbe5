"""How every command of `imgproxy` runs: until its end or a signal, failures as one line, and an exit code that says
where the process is."""

import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import structlog
import trio

from imgnode.command_line import run_program
from imgnode.nursery import flat_nursery
from imgproxy.dialer import CannotConnect
from imgproxy.handover import Decision, RestoreFailed, WaitFor
from imgproxy.session import SourceSession
from imgproxy.source import LinkLost, SessionAborted
from imgproxy.trap import NotStopped
from transform.errors import TransformError

#: Exit codes beside 0 (done), 1 (failed: the process runs on here) and 2 (asked wrongly).
UNKNOWN = 3  #: given up here, and the destination cannot be asked whether the process runs

_log = structlog.get_logger()


def run(verbose: int, main: Callable[[], Awaitable[int]]) -> int:
    """Run `main` until it ends or a signal stops it; what went wrong as one line."""

    async def guarded() -> int:
        code = 0

        async def stop_on_signal() -> None:
            nonlocal code
            async for number in signals:
                code = 128 + number
                nursery.cancel_scope.cancel()

        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with flat_nursery() as nursery:
                nursery.start_soon(stop_on_signal)
                code = await main()
                nursery.cancel_scope.cancel()
        return code

    def program() -> int:
        try:
            return trio.run(guarded)
        except (CannotConnect, LinkLost, SessionAborted, RestoreFailed, TransformError, NotStopped) as error:
            if verbose:
                _log.exception("failed")
            raise OSError(str(error)) from error

    return run_program("imgproxy", bool(verbose), program)


@contextmanager
def telling_if_stopped(session: SourceSession) -> Iterator[None]:
    """A signal ends us: say where that leaves the process."""
    try:
        yield
    except trio.Cancelled:
        committed = session.handover.decision is Decision.COMMITTED
        where = (
            "after the hand-over: the process belongs to the destination" if committed else "the process runs on here"
        )
        if committed and session.memory_left:
            where = (
                "the process runs at the destination, and memory that it needs is still here, in stopped processes: "
                "`imgproxy recover` sends it on"
            )
        _log.warning(f"stopped; {where}")
        raise


def exit_code(session: SourceSession) -> int:
    """That of a session that has ended."""
    if session.handover.decision is not Decision.COMMITTED:
        return 1
    return 0 if session.settled else UNKNOWN


def wait_for(wait_restored: bool | None) -> WaitFor:
    """What --wait-restored and its absence mean."""
    if wait_restored is None:
        return WaitFor.AUTO
    return WaitFor.RESTORED if wait_restored else WaitFor.COMPLETE
