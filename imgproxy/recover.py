"""`imgproxy recover`: finish what a crash left open.

For each session in the journal: decide by the journal and by which tasks live how it ended here, then tell the cache,
as often as it takes. Sessions that another imgproxy is still working on are left alone.

A process that was not given up when its machine crashed is dead all the same. Then the destination may have it, if it
has it whole. That the machine has been started again since is known by the kernel's boot id, and that it is the same
machine by its id: a journal that was carried elsewhere says nothing about who lives.
"""

import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from imgnode import proc, users_script
from imgnode.control_client import ControlClient
from imgnode.greeting import SessionRefused
from imgnode.journal import Journal, journals
from imgproxy.dialer import FIRST_PAUSE, LAST_PAUSE, CannotConnect, Dialer
from imgproxy.handover import outcome
from imgproxy.hook import SCRIPT, SOCKET, STOPPED
from imgproxy.ingest.stream import SOCKET as CAPTURE_SOCKET
from imgproxy.recover_stopped import UNDER_WAY, conclude, settled_there, stopped_tree
from imgproxy.send_on import Busy, alone, send_on
from imgproxy.source import LinkLost
from imgwire.errors import UsageError
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
    stopped: bool = False  #: it was interrupted while memory followed; `detail` says all

    def line(self) -> str:
        """For people."""
        if self.stopped:
            return f"{self.name}: {self.detail}"
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


async def recover(journal: Journal, dialer: Dialer, patience: float, *, run_here: bool = False) -> Recovered:
    """Finish one session. Tries for `patience` seconds to reach the cache. `run_here`: let a process that was lost
    there run on here."""
    name = str(journal.fact("name"))
    if journal.state == STOPPED:
        return await _recover_stopped(journal, name, dialer, patience, run_here=run_here)
    if run_here:
        raise UsageError(f"{name}: --run-here is for a process whose memory was following it to the destination")
    died = died_with_machine(journal)
    try:
        committed = died or await trio.to_thread.run_sync(outcome, journal)
    except TimeoutError as error:
        raise TimeoutError(f"{name}: its hand-over has not come to its end: {error}; try again") from error
    directory, script = Path(str(journal.fact("directory"))), journal.fact("action_script")
    if script and not committed:
        await users_script.undo(Path(str(script)), users_script.DUMP_FAILED, directory)
    _clear(directory, temporary=bool(journal.fact("temporary")))
    resolve = Resolve(journal.session, committed, str(journal.fact("reason") or "recovered by the source"))
    try:
        state = await _asked(dialer, resolve, patience)
    except SessionRefused as error:
        # Fine for an aborted session, grave for a committed one; for a dead process there is nothing left to do.
        if died or not committed:
            journal.remove()
        return Recovered(journal.session, name, committed and not died, not committed, str(error), died)
    except CannotConnect as error:
        return Recovered(journal.session, name, committed, told=False, detail=str(error))
    journal.remove()
    return Recovered(journal.session, name, committed, told=True, detail=state)


async def _recover_stopped(
    journal: Journal, name: str, dialer: Dialer, patience: float, *, run_here: bool
) -> Recovered:
    _clear(Path(str(journal.fact("directory"))), temporary=bool(journal.fact("temporary")))

    async def ask(resolve: Resolve) -> str:
        return await _asked(dialer, resolve, patience)

    try:
        async with alone(journal, patience):
            state = await settled_there(journal, ask, patience)
            if state in UNDER_WAY and stopped_tree(journal) and not (run_here or journal.fact("kept")):
                state = await send_on(journal, dialer)
            settled, detail = await trio.to_thread.run_sync(partial(conclude, journal, state, run_here=run_here))
    except Busy as error:
        return Recovered(journal.session, name, committed=True, told=False, detail=str(error), stopped=True)
    except (CannotConnect, SessionRefused, LinkLost) as error:
        whole = "whole here, and stopped" if stopped_tree(journal) else "gone here"
        detail = f"the process is {whole}; whether it runs there the cache does not say: {error}"
        return Recovered(journal.session, name, committed=True, told=False, detail=detail, stopped=True)
    return Recovered(journal.session, name, committed=True, told=settled, detail=detail, stopped=True)


async def _asked(dialer: Dialer, resolve: Resolve, patience: float) -> str:
    """The cache's answer. CannotConnect after `patience` seconds, SessionRefused."""
    give_up_at, pause = trio.current_time() + patience, FIRST_PAUSE
    while True:
        try:
            return await dialer.resolve(resolve)
        except CannotConnect:
            if trio.current_time() + pause > give_up_at:
                raise
            await trio.sleep(pause)
            pause = min(2 * pause, LAST_PAUSE)


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
