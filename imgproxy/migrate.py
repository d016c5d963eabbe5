"""`imgproxy migrate PID`: the whole migration as one command on the source.

Everything that can be checked is checked before the process is frozen: both nodes, both CRIUs, the options, and that
`criu restore` at the destination has started and waits for its images.
"""

import socket
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
import trio

from imgnode import proc, users_script
from imgnode.criu import Criu, CriuError, cause
from imgnode.criu_options import split
from imgnode.nursery import flat_nursery
from imgnode.preflight import gather, has_room_for_rounds, problems
from imgnode.proc import ProcessId
from imgproxy.capture import DUMP_ENDED
from imgproxy.convergence import Convergence
from imgproxy.copy_rounds import CopyRounds
from imgproxy.display import Display, follow
from imgproxy.handover import Decision
from imgproxy.hook import SCRIPT
from imgproxy.ingest.rounds import RoundsIngest
from imgproxy.near_live import Rounds, run_criu
from imgproxy.points import standing
from imgproxy.post_copy import PostCopy
from imgproxy.session import SourceSession
from imgproxy.source import CacheView, LinkLost, SessionAborted
from imgproxy.summary import summarise
from imgwire import messages
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.states import SessionState

#: Seconds for the destination to start criu restore.
RESTORE_START = 30.0
LOG = "dump.log"
#: Where `criu cpuinfo` works: on others CRIU compares no CPUs.
COMPARED = ("x86_64", "ppc64le", "s390x")

_log = structlog.get_logger()


@dataclass(frozen=True)
class MigrateConfig:
    """What to migrate and how CRIU is to be run. `options` are CRIU's own."""

    pid: int
    criu: str = "criu"
    options: tuple[str, ...] = ()
    convergence: Convergence | None = None  #: rounds as long as they pay; None: one dump
    dedup: bool | None = None  #: whether to send pages that the cache has; None: where there were rounds
    resumed: set[int] | None = None  #: the ISA changes: gets the pids of what was stopped for that, and is to run there


def check_process(pid: int) -> int:
    """Bytes that the images of the tree under `pid` will take, about; UsageError if there is no such process."""
    try:
        if proc.uses_hugetlb(pid):
            raise UsageError(f"process {pid} has huge pages (hugetlb): criu restore cannot read those from a stream")
        return proc.memory_estimate(pid)
    except ProcessLookupError:
        raise UsageError(f"there is no process {pid}") from None


def _identify(pid: int) -> ProcessId:
    try:
        return proc.identify(pid)
    except ProcessLookupError:
        raise UsageError(f"there is no process {pid}") from None


def check_lazy(options: Sequence[str], *, wait_restored: bool, redials: bool, scripted: bool) -> None:
    """UsageError for what cannot go with --lazy. `scripted`: there is an action script of the user's."""
    if scripted:
        raise UsageError("--lazy: an action script is not tried with it; leave --action-script out, or --lazy")
    if not redials:
        raise UsageError("--lazy: a link that is cut must be made again; write HOST:PORT or unix:PATH after --to")
    if not wait_restored:
        raise UsageError("--lazy: it must be restored there before it is given up here; leave --no-wait-restored out")
    if "--tcp-established" in split(options).dump:
        raise UsageError(
            "--lazy: criu would unlock established TCP connections here while the process is not whole there; "
            "leave --tcp-established out, or --lazy"
        )


async def migrate(session: SourceSession, config: MigrateConfig, display: Display) -> bool:
    """Migrate; True if the process runs at the destination, False if it runs on here."""
    options, process = split(config.options), _identify(config.pid)
    async with session.opened() as nursery:
        display.phase("checking")
        await _check(session, config)
        if session.post_copy is not None:
            await session.post_copy.announce()
        await _start_restore(session, options.restore)
        nursery.start_soon(follow, session, display)
        await nursery.start(session.capture)
        rounds = await _rounds(session, config, options.dump, display)
        reason = await _handed_over(session, config, options.dump, rounds)
        if session.handover.decision is Decision.COMMITTED:
            await _wait_running(session)
        elif reason and session.handover.reason == DUMP_ENDED:
            session.handover.reason = f"criu dump failed: {reason}"
    if session.handover.decision is not Decision.COMMITTED and not proc.is_alive(process):
        session.handover.reason += f"; process {config.pid} has ended"
    display.summary(summarise(session))
    return session.handover.decision is Decision.COMMITTED


_ENDED = (Decision.COMMITTED, Decision.ABORTED)


async def _handed_over(
    session: SourceSession, config: MigrateConfig, options: Sequence[str], rounds: Rounds | None
) -> str:
    """Dump, until it is decided where the process is; what the log of criu says if it fails."""
    async with AsyncExitStack() as stack:
        tree = None
        if config.resumed is not None:
            tree = await stack.enter_async_context(standing(config.pid, config.resumed))
        await stack.enter_async_context(_undone_if_it_stays(session))
        reason = await _dump(session, config, options, rounds)
        await session.handover.changes.wait_until(lambda: session.handover.decision in _ENDED)
        if tree:
            tree.given_up = session.handover.decision is Decision.COMMITTED
    return reason


@asynccontextmanager
async def _undone_if_it_stays(session: SourceSession) -> AsyncIterator[None]:
    """If the process is not given up, have the user's action script undo what it did for the dump."""
    handover, script = session.handover, session.config.action_script
    try:
        yield
    finally:
        if script is not None:
            with trio.CancelScope(shield=True):
                await handover.changes.wait_until(lambda: handover.decision is not Decision.DECIDING)
            if handover.decision is not Decision.COMMITTED:
                await users_script.undo(script, users_script.DUMP_FAILED, session.config.directory)


async def _check(session: SourceSession, config: MigrateConfig) -> None:
    """Refuse with UsageError, all reasons named, what cannot work."""
    criu = Criu(config.criu)
    here = await gather(criu)
    there = session.destination
    if there is None:
        raise UsageError("the cache did not say what its node is")
    found = problems(here, there, session.config.need, arch=session.config.arch)
    if not found and here.arch in COMPARED and not session.config.arch:
        found = await _check_cpu(session, criu)
    if found:
        raise UsageError("nothing was frozen: " + "; ".join(found))


async def _check_cpu(session: SourceSession, criu: Criu) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="imgproxy-cpu-") as directory:
        try:
            await criu.cpuinfo_dump(Path(directory))
        except CriuError as error:
            return [f"source: {error}"]
        cpuinfo = (Path(directory) / "cpuinfo.img").read_bytes()
    try:
        await session.view.ask(session.channel, lambda number: messages.CheckCpu(number, cpuinfo))
    except RemoteProtocolError as error:
        return [f"destination: its CPU cannot run the process: {error}"]
    return []


async def _start_restore(session: SourceSession, options: Sequence[str]) -> None:
    """Have criu restore started there, and see it wait for its images."""
    view: CacheView = session.view
    policy = session.config.policy
    await session.channel.send(messages.Restore(tuple(options), lazy=policy.lazy and not policy.follows))
    with trio.move_on_after(RESTORE_START):
        await view.wait_for(lambda: view.restore_ready or bool(view.restore_failures))
    if view.restore_failures:
        raise UsageError(f"nothing was frozen: criu restore there failed at once: {view.restore_failures[0]}")
    if not view.restore_ready:
        raise UsageError(f"nothing was frozen: criu restore there did not start within {RESTORE_START:.0f} s")


async def _rounds(
    session: SourceSession, config: MigrateConfig, options: Sequence[str], display: Display
) -> Rounds | None:
    """Rounds while they pay; pre-dumps, if they were that, for the dump to be the last of them."""
    convergence, need = config.convergence, session.config.need
    if convergence is None:
        return None
    room = session.destination is None or has_room_for_rounds(session.destination, need)
    if isinstance(session.ingest, RoundsIngest):
        rounds = Rounds(session.ingest, config.criu, config.pid, options)
        reason = await rounds.pre_dump(convergence, session.view, display.round) if room else _NO_ROOM
    else:
        rounds, reason = None, await _copies(session, config, options, display) if room else _NO_ROOM
    session.foretold = convergence.predicted(trio.current_time())
    if not convergence.rounds and config.dedup is None:
        session.sender.send_all_pages()
    if rounds is None:
        await session.begin_dump()
    display.phase(f"dump: {reason}")
    return rounds


_NO_ROOM = "the cache at the destination has no room for two checkpoints, as rounds need it"


async def _copies(session: SourceSession, config: MigrateConfig, options: Sequence[str], display: Display) -> str:
    """Copies while they pay; why no more."""
    convergence = config.convergence
    assert convergence is not None
    copies = CopyRounds(
        session.sender, session.sync, session.config.directory, session.journal, config.criu, config.pid, options
    )
    ordered = convergence.target is None
    against = None if ordered else await copies.reason_against(session.config.need)
    if against is not None:
        return against
    display.phase("copying")
    return await copies.copy(convergence, session.view, display.round)


async def _dump(session: SourceSession, config: MigrateConfig, options: Sequence[str], rounds: Rounds | None) -> str:
    """Run criu dump; what its log says if it fails."""
    directory = session.config.directory
    own = ["-o", str(directory / LOG), "--action-script", str(directory / SCRIPT)]
    streamed = [config.criu, "dump", "--stream", "-D", str(directory), "-t", str(config.pid), *own, *options]
    try:
        if session.post_copy is not None:
            code = await _dump_lazily(session, session.post_copy, streamed, config.pid)
        elif session.config.policy.lazy:
            code = await _dump_and_stop(session, rounds, streamed, own, config.pid)
        else:
            code = await (rounds.dump(*own) if rounds else run_criu(streamed))
    except OSError as error:
        session.handover.abort(f"{config.criu}: {error.strerror}")
        return ""
    if code == 0:
        return ""
    reason = _failure(session, code)
    session.handover.abort(f"criu dump failed: {reason}")
    return reason


def _failure(session: SourceSession, code: int) -> str:
    reason = _reason(session.config.directory / LOG) or f"exit code {code}"
    return f"{reason} (its log is kept as {session.config.journal / LOG})"


async def _dump_lazily(session: SourceSession, post_copy: PostCopy, words: Sequence[str], pid: int) -> int:
    """Run criu dump, which serves the memory that follows, until that is over; its exit code."""
    ours, theirs = socket.socketpair()
    lazily = ["--lazy-pages", "--leave-running", "--ps-socket", str(theirs.fileno())]
    code = 0
    with theirs:
        async with flat_nursery() as nursery:

            async def follow() -> None:
                with trio.socket.from_stdlib_socket(ours) as sock:
                    await post_copy.run(sock, pid)

            nursery.start_soon(follow)
            code = await run_criu([*words, *lazily], [theirs.fileno()], theirs.close)
            post_copy.criu_ended(f"criu dump failed: {_failure(session, code)}" if code else DUMP_ENDED)
    return code


async def _dump_and_stop(
    session: SourceSession, rounds: Rounds | None, streamed: Sequence[str], own: Sequence[str], pid: int
) -> int:
    """Run criu dump, the last of the rounds if there are any, which leaves the tree stopped, until that is needed no
    more; its exit code."""
    handover = session.handover
    code = 0
    async with flat_nursery() as nursery:

        async def stop_when_held() -> None:
            await handover.changes.wait_until(lambda: handover.serving or handover.decision in _ENDED)
            if handover.serving:
                await session.stopped_tree.hand_over(pid, kept=True)

        nursery.start_soon(stop_when_held)
        if rounds:
            code = await rounds.dump(*own, "--leave-running")
        else:
            code = await run_criu([*streamed, "--leave-running"])
        handover.abort(f"criu dump failed: {_failure(session, code)}" if code else DUMP_ENDED)
    return code


def _reason(log: Path) -> str | None:
    return cause(log.read_text(errors="replace")) if log.exists() else None


async def _wait_running(session: SourceSession) -> None:
    """The process belongs to the destination; see it run, or say that it is not known."""
    if session.view.state is SessionState.LOST:
        return
    try:
        await session.wait_settled()
    except (LinkLost, SessionAborted) as error:
        _log.error("committed, but the destination cannot be asked whether it runs", reason=str(error))
