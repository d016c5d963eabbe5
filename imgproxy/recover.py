"""`imgproxy recover`: finish what a crash left open.

For each session in the journal: decide by the journal and by which tasks live how it ended here, then tell the cache,
as often as it takes. Sessions that another imgproxy is still working on are left alone.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from imgnode.control_client import ControlClient
from imgnode.greeting import SessionRefused
from imgnode.journal import Journal, journals
from imgproxy.dialer import FIRST_PAUSE, LAST_PAUSE, CannotConnect, Dialer
from imgproxy.handover import outcome
from imgproxy.hook import SCRIPT, SOCKET
from imgproxy.ingest.stream import SOCKET as CAPTURE_SOCKET
from imgwire.messages import Resolve

_log = structlog.get_logger()


@dataclass(frozen=True)
class Recovered:
    """What became of one session."""

    session: str
    name: str
    committed: bool
    told: bool
    detail: str = ""

    def line(self) -> str:
        """For people."""
        where = "runs at the destination" if self.committed else "stays here"
        if self.told:
            return f"{self.name}: the process {where}; the cache knows ({self.detail})"
        return f"{self.name}: the process {where}; the cache could not be told: {self.detail}"


def unfinished(directory: Path, session: str | None = None) -> list[Journal]:
    """The journal's sessions that nobody works on."""
    found = journals(str(directory)) if directory.is_dir() else iter(())
    return [one for one in found if session in (None, one.session) and not _in_work(one)]


async def recover(journal: Journal, dialer: Dialer, patience: float) -> Recovered:
    """Finish one session. Tries for `patience` seconds to reach the cache."""
    name = str(journal.fact("name"))
    committed = await trio.to_thread.run_sync(outcome, journal)
    _clear(Path(str(journal.fact("directory"))), temporary=bool(journal.fact("temporary")))
    resolve = Resolve(journal.session, committed, str(journal.fact("reason") or "recovered by the source"))
    give_up_at, pause = trio.current_time() + patience, FIRST_PAUSE
    while True:
        try:
            state = await dialer.resolve(resolve)
        except SessionRefused as error:
            return _refused(journal, name, committed, str(error))
        except CannotConnect as error:
            if trio.current_time() + pause > give_up_at:
                return Recovered(journal.session, name, committed, told=False, detail=str(error))
            await trio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
        else:
            journal.remove()
            return Recovered(journal.session, name, committed, told=True, detail=state)


def _refused(journal: Journal, name: str, committed: bool, reason: str) -> Recovered:
    """The cache does not know the session: fine for an aborted one, grave for a committed one."""
    if not committed:
        journal.remove()
    return Recovered(journal.session, name, committed, told=not committed, detail=reason)


def _in_work(journal: Journal) -> bool:
    directory = journal.fact("directory")
    try:
        ControlClient(f"{directory}/{SOCKET}").close()
    except (FileNotFoundError, ConnectionRefusedError):
        return False
    return True


def _clear(directory: Path, *, temporary: bool) -> None:
    """Remove what a killed proxy left in its images directory; all of one that was its own."""
    if temporary:
        shutil.rmtree(directory, ignore_errors=True)
    for name in (SOCKET, CAPTURE_SOCKET, SCRIPT):
        (directory / name).unlink(missing_ok=True)
