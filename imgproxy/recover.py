"""`imgproxy recover`: finish what a crash left open.

For each session in the journal: decide by the journal and by which tasks live how it ended here, then tell the cache,
as often as it takes. Sessions that another imgproxy is still working on are left alone.

A process that was not given up when its machine crashed is dead all the same. Then the destination may have it, if it
has it whole. That the machine has been started again since is known by the kernel's boot id, and that it is the same
machine by its id: a journal that was carried elsewhere says nothing about who lives.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import trio

from imgnode import proc
from imgnode.control_client import ControlClient
from imgnode.greeting import SessionRefused
from imgnode.journal import Journal, journals
from imgproxy.dialer import FIRST_PAUSE, LAST_PAUSE, CannotConnect, Dialer
from imgproxy.handover import outcome
from imgproxy.hook import SCRIPT, SOCKET
from imgproxy.ingest.stream import SOCKET as CAPTURE_SOCKET
from imgwire.messages import Resolve


@dataclass(frozen=True)
class Recovered:
    """What became of one session."""

    session: str
    name: str
    committed: bool
    told: bool
    detail: str = ""
    died: bool = False  #: with this machine, before it was given up

    def line(self) -> str:
        """For people."""
        if self.died and not self.committed:
            return f"{self.name}: the process died with this machine; the cache cannot bring it back ({self.detail})"
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
    died = died_with_machine(journal)
    committed = died or await trio.to_thread.run_sync(outcome, journal)
    _clear(Path(str(journal.fact("directory"))), temporary=bool(journal.fact("temporary")))
    resolve = Resolve(journal.session, committed, str(journal.fact("reason") or "recovered by the source"))
    give_up_at, pause = trio.current_time() + patience, FIRST_PAUSE
    while True:
        try:
            state = await dialer.resolve(resolve)
        except SessionRefused as error:
            # Fine for an aborted session, grave for a committed one; for a dead process there is nothing left to do.
            if died or not committed:
                journal.remove()
            settled = not committed
            return Recovered(journal.session, name, committed and not died, settled, str(error), died)
        except CannotConnect as error:
            if trio.current_time() + pause > give_up_at:
                return Recovered(journal.session, name, committed, told=False, detail=str(error))
            await trio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)
        else:
            journal.remove()
            return Recovered(journal.session, name, committed, told=True, detail=state)


def died_with_machine(journal: Journal) -> bool:
    """Whether the process was not given up, and its machine has been started anew since."""
    machine, boot = journal.fact("machine"), journal.fact("boot")
    return journal.state == "opened" and bool(machine) and machine == proc.machine_id() and boot != proc.boot_id()


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
