"""Facts about processes, and the means to end them, from /proc and pidfds, with the standard library alone.

The action-script hook runs while a process is frozen and so must start at once: this module imports nothing
heavy, and `imgnode.process` adds what needs trio. A process may vanish between any two lines here, and its
pid may be taken by another: whoever remembers a process keeps a `ProcessId`, and a signal goes through a
pidfd that was checked against it. Every function that scans is blocking; trio callers put it in a thread.
"""

import os
import select
import signal
import time
from collections import namedtuple
from collections.abc import Callable, Iterable

PROC = "/proc"

_BOOT_ID = f"{PROC}/sys/kernel/random/boot_id"
_MACHINE_ID = "/etc/machine-id"

_STATE, _PARENT, _GROUP, _FLAGS, _THREADS, _START = 0, 1, 2, 6, 17, 19
"""Indices of fields 3, 4, 5, 9, 20 and 22 of /proc/PID/stat in what follows the command's name (proc_pid_stat(5))."""


_TRACED_DEATH = 5
"""Milliseconds between two looks at dying threads: a pidfd is silent while a tracer holds on to dead ones."""

_EXITING = 0x4
"""PF_EXITING of include/linux/sched.h: set before anything of the task is taken down, never taken back."""


class ProcessId(namedtuple("ProcessId", ("pid", "start_time", "boot_id"))):
    """One process and no other, for as long as the machine's memory of it lasts: survives reuse of its pid.

    Not typing.NamedTuple, nor anything of pathlib: importing them takes longer than all else that the hook does.
    """

    __slots__ = ()

    pid: int
    start_time: int  #: clock ticks from boot to its start
    boot_id: str  #: the kernel's random id of this boot


def identify(pid: int) -> ProcessId:
    """Who has this pid now. ProcessLookupError if nobody."""
    return ProcessId(pid, int(_stat(pid)[_START]), boot_id())


def age() -> float:
    """Seconds since this process was started, to a hundredth."""
    ticks = int(_stat(os.getpid())[_START])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def boot_id() -> str:
    """The kernel's random id of this boot."""
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def machine_id() -> str:
    """This machine's id, the same after a reboot (machine-id(5)); "" where it has none."""
    try:
        with open(_MACHINE_ID, encoding="ascii") as file:
            return file.read().strip()
    except FileNotFoundError:
        return ""


def is_alive(process: ProcessId) -> bool:
    """Whether that very process can still run. A zombie cannot, unless threads outlive its first one.

    Dead threads that are traced stay until the tracer takes note; a frozen tree's is CRIU, which waits for us.
    """
    try:
        fields = _stat(process.pid)
    except ProcessLookupError:
        return False
    if int(fields[_START]) != process.start_time or boot_id() != process.boot_id:
        return False
    if fields[_STATE] not in "ZX":
        return True
    return int(fields[_THREADS]) > 1 and bool(_thread_states(process.pid) - set("ZX"))


def tree(pid: int) -> list[ProcessId]:
    """`pid` and all its descendants, root first, parents before children. ProcessLookupError if the root is
    gone.

    What forks or exits meanwhile may be missed: exact once the tree is frozen.
    """
    found = [identify(pid)]
    for process in found:
        found += children(process)
    return found


def children(process: ProcessId) -> list[ProcessId]:
    """Its children now; empty if it is gone."""
    found = []
    for child in _children(process.pid) if is_alive(process) else []:
        try:
            found.append(identify(child))
        except ProcessLookupError:
            continue
    return found


def ancestors(pid: int) -> list[int]:
    """`pid` itself, its parent, that one's parent and so on, as far as they can be seen."""
    found = []
    while pid:
        found.append(pid)
        try:
            pid = int(_stat(pid)[_PARENT])
        except ProcessLookupError:
            break
    return found


def command_line(pid: int) -> list[str]:
    """The words that the process was started with; ProcessLookupError if it is gone."""
    return _read(pid, "cmdline").split("\0")[:-1]


def group(pid: int) -> int:
    """Its process group; ProcessLookupError if it is gone."""
    return int(_stat(pid)[_GROUP])


def members(group_id: int, called: Callable[[list[str]], bool]) -> list[ProcessId]:
    """The processes of that process group that are called so: `called` looks at a command line."""
    found = []
    for pid in _pids():
        try:
            if group(pid) == group_id and called(command_line(pid)):
                found.append(identify(pid))
        except ProcessLookupError:
            continue
    return found


def innermost_pid(pid: int) -> int:
    """Its pid in its own namespace; ProcessLookupError if it is gone."""
    return int(_field(_read(pid, "status"), "NSpid").split()[-1])


def tracer(pid: int) -> int:
    """The pid of the process that traces `pid`; 0 if none does. ProcessLookupError if it is gone."""
    return int(_field(_read(pid, "status"), "TracerPid"))


def traced_by(tracer_pid: int) -> list[ProcessId]:
    """The processes that `tracer_pid` traces, as CRIU does with all that it has frozen."""
    found = []
    for pid in _pids() if tracer_pid else []:
        try:
            if tracer(pid) == tracer_pid:
                found.append(identify(pid))
        except ProcessLookupError:
            continue
    return found


def memory_estimate(pid: int) -> int:
    """Bytes of page data that a dump of the tree under `pid` will hold, from smaps_rollup. ProcessLookupError
    if it is gone.

    Private memory is dumped once for each process, so it is summed: `Anonymous` (private pages that differ
    from their file are in it) and `Swap`. Shared memory is dumped once: `Pss_Shmem` gives each process its
    part. What no process has mapped (an idle memfd) is not seen.
    """
    found = tree(pid)
    return sum(_memory(process.pid) for process in found)


def uses_hugetlb(pid: int) -> bool:
    """Whether a process of the tree under `pid` has huge pages (hugetlbfs, MAP_HUGETLB) in its memory."""
    return any(int(_field(_status(process.pid), "HugetlbPages").split()[0]) > 0 for process in tree(pid))


def _status(pid: int) -> str:
    try:
        return _read(pid, "status")
    except ProcessLookupError:
        return ""


def open_pidfd(process: ProcessId) -> int | None:
    """A pidfd of that very process, to be closed by the caller; None if it is dead."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    if is_alive(process):  # after opening: from here on the descriptor means the process that was checked
        return fd
    os.close(fd)
    return None


def kill_tree(processes: Iterable[ProcessId]) -> None:
    """SIGKILL to each that still lives, in this order; it works on frozen and traced ones too.

    See `wait_dead`.
    """
    _signal_each(processes, signal.SIGKILL)


def stop_tree(processes: Iterable[ProcessId]) -> None:
    """SIGSTOP to each. Frozen and traced ones stop the moment that their tracer lets them go or dies, before they
    execute anything (tried with both, with many threads)."""
    _signal_each(processes, signal.SIGSTOP)


def continue_tree(processes: Iterable[ProcessId]) -> None:
    """SIGCONT to each: takes `stop_tree` back, before it has had effect, too."""
    _signal_each(processes, signal.SIGCONT)


def _signal_each(processes: Iterable[ProcessId], number: int) -> None:
    for process in processes:
        fd = open_pidfd(process)
        if fd is None:
            continue
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            continue  # died between the check and the signal
        finally:
            os.close(fd)


def wait_doomed(processes: Iterable[ProcessId], seconds: float) -> None:
    """Block until none of them can execute another instruction of its program: each thread is on its way out.

    That is sooner than dead: taking down the memory of a killed process takes about 0.1 s per GiB.
    TimeoutError, naming one that is not, after `seconds`.
    """
    end = time.monotonic() + seconds
    pause = select.poll()
    for process in processes:
        while not _is_doomed(process):
            if time.monotonic() > end:
                raise TimeoutError(f"process {process.pid} still lives {seconds} s after it was killed")
            pause.poll(1)


def _is_doomed(process: ProcessId) -> bool:
    if not is_alive(process):
        return True
    try:
        threads = os.listdir(f"{PROC}/{process.pid}/task")
        flags = [
            int(_read(process.pid, f"task/{thread}/stat").rpartition(")")[2].split()[_FLAGS]) for thread in threads
        ]
    except (FileNotFoundError, ProcessLookupError):  # going away as we look: look again
        return not is_alive(process)
    return all(each & _EXITING for each in flags)


def is_dying(pid: int) -> bool:
    """Whether that process is on its way out, or gone: what it held open is let go of from then on, not before."""
    try:
        return bool(int(_stat(pid)[_FLAGS]) & _EXITING)
    except ProcessLookupError:
        return True


def wait_dead(processes: Iterable[ProcessId], seconds: float) -> None:
    """Block until all are dead (or zombies), without trio.

    TimeoutError, naming one that lives, after `seconds`.
    """
    end = time.monotonic() + seconds
    for process in processes:
        fd = open_pidfd(process)
        if fd is None:
            continue
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            while is_alive(process):
                if time.monotonic() > end:
                    raise TimeoutError(f"process {process.pid} still lives after {seconds} s")
                poll.poll(_TRACED_DEATH)
        finally:
            os.close(fd)


def socket_holders(inodes: set[int]) -> list[int]:
    """The pids, ascending, of all processes that hold one of these socket inodes open (and that we may look
    into).
    """
    return [pid for pid in _pids() if not inodes.isdisjoint(_socket_inodes(pid))]


def own_socket_inodes(pid: int) -> set[int]:
    """The inodes of sockets that `pid` holds and no other process does at this moment; empty if it is gone."""
    own = _socket_inodes(pid)
    for other in _pids():
        if not own:
            break
        if other != pid:
            own -= _socket_inodes(other)
    return own


def _pids() -> list[int]:
    return sorted(int(name) for name in os.listdir(PROC) if name.isdigit())


def _socket_inodes(pid: int) -> set[int]:
    """Empty for a process that is gone or that belongs to somebody else."""
    found: set[int] = set()
    try:
        descriptors = os.listdir(f"{PROC}/{pid}/fd")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return found
    for descriptor in descriptors:
        try:
            target = os.readlink(f"{PROC}/{pid}/fd/{descriptor}")
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found


def _thread_states(pid: int) -> set[str]:
    """The states of its threads, as in proc_pid_stat(5); empty if it is gone."""
    found = set()
    for thread in _threads(pid):
        try:
            found.add(_read(pid, f"task/{thread}/stat").rpartition(")")[2].split()[_STATE])
        except ProcessLookupError:
            continue
    return found


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"{PROC}/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _children(pid: int) -> list[int]:
    """Children of all its threads; empty if it is gone."""
    found: list[int] = []
    for thread in _threads(pid):
        try:
            found += [int(child) for child in _read(pid, f"task/{thread}/children").split()]
        except ProcessLookupError:
            continue
    return found


def _memory(pid: int) -> int:
    try:
        text = _read(pid, "smaps_rollup")
    except ProcessLookupError:
        return 0  # gone or a zombie: no memory to dump
    kibibytes = sum(int(_field(text, name).split()[0]) for name in ("Anonymous", "Swap", "Pss_Shmem"))
    return kibibytes * 1024


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on: the second is a name that may hold anything."""
    return _read(pid, "stat").rpartition(")")[2].split()


def _read(pid: int, name: str) -> str:
    try:
        with open(f"{PROC}/{pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError as error:
        raise ProcessLookupError(error.errno, "no such process", str(pid)) from error


def _field(text: str, name: str) -> str:
    """The value of a "Name:   value" line; "0" if this kernel has none."""
    for line in text.splitlines():
        if line.startswith(f"{name}:"):
            return line[len(name) + 1 :].strip()
    return "0"
