"""When CRIU can be killed without harm to what it dumps.

CRIU makes its tasks call the kernel: it writes a system call and a breakpoint over the beginning of a code mapping, and
sets a task's registers to them. Killed before it has taken that back, it leaves the task to the breakpoint, and so to
death by SIGTRAP. The same where its own code in the task comes to its end. Nobody but CRIU can prevent that
(docs/failure-model.md), so a test that kills CRIU at a random moment waits for one at which the task has its own
registers, or CRIU's code would put them back by itself.
"""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import trio

from tests.nodes import DEADLINE, Node, until
from tests.programs.selfcheck import SelfCheck

#: Bytes of a system call and a breakpoint, at most.
STUB = 16
#: How CRIU names its code in a task.
PARASITE = "/memfd:CRIUMFD"
CRIU = "/criu dump "


async def stand_safely(node: Node, check: SelfCheck) -> None:
    """Return with every CRIU that dumps in the node stopped, at a moment at which its death does not harm the tree."""
    with trio.fail_after(DEADLINE):
        while True:
            dumping = [pid for pid, command in node.processes().items() if CRIU in command]
            await _stop(dumping)
            if not any(_may_be_harmed(pid) for pid in check.pids()):
                return
            _signal(dumping, signal.SIGCONT)
            await trio.sleep(0.001)


async def _stop(pids: list[int]) -> None:
    _signal(pids, signal.SIGSTOP)
    await until(lambda: all(_state(pid) in "TtZX" for pid in pids), "criu to stop")


def _signal(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:  # it has come to its end
            continue


def _may_be_harmed(pid: int) -> bool:
    return any(_in_criu_s_hands(pid, thread) for thread in Path(f"/proc/{pid}/task").glob("*"))


def _in_criu_s_hands(pid: int, thread: Path) -> bool:
    """Whether it is held or on its way, in code that is not its own."""
    try:
        fields = dict(line.split(":\t", 1) for line in (thread / "status").read_text().splitlines() if ":\t" in line)
        if fields["TracerPid"] == "0" or fields["State"][0] in "SDZX":
            return False
        *_, counter = (thread / "syscall").read_text().split()
        return counter == "running" or any(_is_foreign(int(counter, 16), *each) for each in _code(pid))
    except (FileNotFoundError, ProcessLookupError):
        return False


def _is_foreign(counter: int, start: int, end: int, name: str) -> bool:
    return start <= counter < (end if name.startswith(PARASITE) else start + STUB)


def _code(pid: int) -> Iterator[tuple[int, int, str]]:
    """Start, end and name of the mappings with code."""
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        where, rights, _, _, _, *name = line.split(None, 5)
        if "x" in rights:
            start, _, end = where.partition("-")
            yield int(start, 16), int(end, 16), "".join(name)


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"
