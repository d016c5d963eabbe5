"""The command line of `imgproxy`."""

import os
import secrets
import shutil
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
import trio
import typer

from imgnode import logs
from imgnode.addresses import parse_address
from imgnode.command_line import Wire, run_program
from imgnode.criu import Criu
from imgnode.nursery import flat_nursery
from imgnode.preflight import gather, machine_problems
from imgproxy import cli_options as given
from imgproxy.dialer import CannotConnect
from imgproxy.display import choose
from imgproxy.handover import Decision, HandoverPolicy, RestoreFailed, WaitFor
from imgproxy.hook import SCRIPT
from imgproxy.migrate import LOG, MigrateConfig, check_process, migrate
from imgproxy.one_way import OneWaySession
from imgproxy.recover import recover, unfinished
from imgproxy.session import SourceConfig, SourceSession
from imgproxy.source import LinkLost, SessionAborted
from imgproxy.summary import summarise
from imgwire.errors import UsageError
from transform.errors import TransformError

#: Exit codes beside 0 (done), 1 (failed: the process runs on here) and 2 (asked wrongly).
UNKNOWN = 3  #: given up here, and the destination cannot be asked whether the process runs

app = typer.Typer(
    help="Takes the images of `criu dump --stream` (or --remote) and brings them to imgcache on another node.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

_log = structlog.get_logger()


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    directory: Annotated[
        list[Path] | None,
        typer.Option("-D", "--images-dir", help="Where criu finds the socket; with --remote, each -D of criu's."),
    ] = None,
    to: given.OptionalTo = None,
    wire: given.ByWire = Wire.LINK,
    snapshot: given.Snapshot = "",
    remote: Annotated[
        bool, typer.Option("--remote", help="For the original criu --remote: pre-dumps, then a dump.")
    ] = False,
    work_dir: Annotated[
        list[Path] | None, typer.Option("-W", "--work-dir", help="With --remote: the -W of criu's, if it has one.")
    ] = None,
    session: given.Name = "",
    wait_restored: Annotated[
        bool | None,
        typer.Option(
            help="End the process here only when it is restored there. Default: if a criu restore with our "
            "action script waits there."
        ),
    ] = None,
    incremental: Annotated[
        bool, typer.Option("--incremental", help="With --remote: this criu can pre-dump more than once (mended forks).")
    ] = False,
    hook: Annotated[
        bool | None,
        typer.Option(
            help="Insist on the action script, without which the hand-over is not safe. Default: except with --remote."
        ),
    ] = None,
    timeout: given.Timeout = 300.0,
    compress: given.Compress = "auto",
    limit_rate: given.LimitRate = None,
    digest_pages: given.DigestPages = False,
    reconnect: given.Patience = 30.0,
    map_path: given.MapPath = None,
    tcp_listen_remap: given.Remap = None,
    journal: given.JournalDirectory = None,
    tls_cacert: given.CaCert = None,
    tls_cert: given.Cert = None,
    tls_key: given.Key = None,
    insecure: given.Insecure = False,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus.")] = None,
    verbose: given.Verbose = 0,
) -> None:
    """Take one `criu dump` with --stream, or with --remote, and hand the process over."""
    if context.invoked_subcommand is not None:
        return
    logs.configure(verbose)

    async def main() -> int:
        if to is None or not directory:
            raise UsageError("say where the images go (--to) and where criu dump runs (-D)")
        if incremental and not remote:
            raise UsageError("--incremental: only criu --remote is told of earlier rounds; write --remote, too")
        here, *linked = given.directories(directory, work_dir, remote=remote)
        journals = (journal or here / "journal").absolute()
        address, transforms = parse_address(to), partial(given.chain, map_path, tcp_listen_remap)
        journals.mkdir(mode=0o700, parents=True, exist_ok=True)
        typed = snapshot or str(directory[0])
        out = await given.one_way(context, address, wire, name=session, snapshot=typed, insecure=insecure)
        if out is not None:
            one_way = OneWaySession(
                out,
                here,
                journals,
                transforms,
                compress=compress,
                timeout=timeout,
                remote=remote,
                linked=linked,
                hookless=not (hook if hook is not None else not remote),
            )
            async with flat_nursery() as nursery:
                await nursery.start(one_way.capture)
                _say_ready(here, remote=remote)
            return _outcome(one_way)
        tls = given.TlsFiles(tls_cacert, tls_cert, tls_key)
        config = SourceConfig(
            dialer=given.dialer(address, tls, insecure=insecure),
            directory=here,
            journal=journals,
            name=session,
            policy=HandoverPolicy(_wait_for(wait_restored), timeout),
            compress=compress,
            limit_rate=given.rate(limit_rate),
            digest_pages=digest_pages,
            hookless=not (hook if hook is not None else not remote),
            remote=remote,
            incremental=incremental,
            linked=tuple(linked),
            patience=reconnect,
            recover_options=tuple(tls.words()),
            metrics=metrics,
        )
        source = SourceSession(config, transforms)
        with _telling_if_stopped(source):
            return await _run_capture(source)

    raise typer.Exit(_run(verbose, main))


@app.command(name="migrate", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def migrate_command(
    context: typer.Context,
    pid: Annotated[int, typer.Argument(help="Root of the process tree. CRIU's own options may follow.")],
    to: given.ToCache,
    session: given.Name = "",
    criu: Annotated[str, typer.Option(help="The CRIU program here.")] = "criu",
    wait_restored: Annotated[bool, typer.Option(help="End the process here only when it is restored there.")] = True,
    timeout: given.Timeout = 300.0,
    compress: given.Compress = "auto",
    limit_rate: given.LimitRate = None,
    digest_pages: given.DigestPages = False,
    reconnect: given.Patience = 30.0,
    map_path: given.MapPath = None,
    tcp_listen_remap: given.Remap = None,
    journal: given.JournalDirectory = None,
    tls_cacert: given.CaCert = None,
    tls_cert: given.Cert = None,
    tls_key: given.Key = None,
    insecure: given.Insecure = False,
    rounds: Annotated[str, typer.Option(help="Pre-dumps: how many, or auto: as long as they pay.")] = "0",
    downtime_target: Annotated[float, typer.Option(help="Seconds frozen that are few enough for --rounds auto.")] = 0.3,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    verbose: given.Verbose = 0,
) -> None:
    """Migrate a running process to a cache that was started with --allow-restore. Further options go to CRIU."""
    logs.configure(verbose)

    async def main() -> int:
        tls = given.TlsFiles(tls_cacert, tls_cert, tls_key)
        journals = (journal or given.default_journal()).absolute()
        need = await trio.to_thread.run_sync(check_process, pid)
        convergence = await given.convergence(rounds, downtime_target, criu)
        with ExitStack() as last, _images_directory(journals) as directory:
            config = SourceConfig(
                dialer=given.dialer(parse_address(to), tls, insecure=insecure),
                directory=directory,
                journal=journals,
                name=session,
                policy=HandoverPolicy(_wait_for(wait_restored), timeout, one_attempt=True),
                compress=compress,
                limit_rate=given.rate(limit_rate),
                digest_pages=digest_pages,
                patience=reconnect,
                need=need,
                rounds=convergence is not None,
                temporary=True,
                recover_options=tuple(tls.words()),
            )
            source = SourceSession(config, partial(given.chain, map_path, tcp_listen_remap))
            last.callback(source.forget)
            display = choose(as_json)
            try:
                with _telling_if_stopped(source):
                    await migrate(source, MigrateConfig(pid, criu, tuple(context.args), convergence), display)
            finally:
                display.close()
        return _end(source)

    raise typer.Exit(_run(verbose, main))


@app.command()
def send(
    context: typer.Context,
    images: Annotated[Path, typer.Argument(help="Directory of a finished criu dump.")],
    to: given.To,
    wire: given.ByWire = Wire.LINK,
    snapshot: given.Snapshot = "",
    session: given.Name = "",
    compress: given.Compress = "auto",
    limit_rate: given.LimitRate = None,
    map_path: given.MapPath = None,
    tcp_listen_remap: given.Remap = None,
    tls_cacert: given.CaCert = None,
    tls_cert: given.Cert = None,
    tls_key: given.Key = None,
    insecure: given.Insecure = False,
    verbose: given.Verbose = 0,
) -> None:
    """Send the images of a directory to a cache or into an archive."""
    logs.configure(verbose)

    async def main() -> int:
        address, transforms = parse_address(to), partial(given.chain, map_path, tcp_listen_remap)
        out = await given.one_way(
            context, address, wire, name=session, snapshot=snapshot or str(images), insecure=insecure
        )
        with tempfile.TemporaryDirectory(prefix="imgproxy-") as temporary:
            nowhere = Path(temporary)
            if out is not None:
                one_way = OneWaySession(out, nowhere, nowhere, transforms, compress=compress)
                await one_way.send_directory(images)
                return 0
            tls = given.TlsFiles(tls_cacert, tls_cert, tls_key)
            config = SourceConfig(
                dialer=given.dialer(address, tls, insecure=insecure),
                directory=nowhere,
                journal=nowhere,
                name=session,
                policy=HandoverPolicy(WaitFor.COMPLETE),
                compress=compress,
                limit_rate=given.rate(limit_rate),
            )
            source = SourceSession(config, transforms)
            async with source.opened():
                await source.send_directory(images)
            print(f"{len(source.sender.images)} images are at the cache, in session {source.name}")
            return 0

    raise typer.Exit(_run(verbose, main))


@app.command(name="recover")
def recover_command(
    session: Annotated[
        str | None, typer.Argument(help="Id of one session; all that are unfinished without it.")
    ] = None,
    journal: given.JournalDirectory = None,
    directory: Annotated[Path | None, typer.Option("-D", "--images-dir", help="As given to imgproxy.")] = None,
    patience: Annotated[float, typer.Option(help="Seconds to try to reach each cache.")] = 60.0,
    verbose: given.Verbose = 0,
) -> None:
    """Finish what a crash left open: decide where the process runs, and tell the cache."""
    logs.configure(verbose)

    async def main() -> int:
        place = journal or (directory / "journal" if directory else given.default_journal())
        untold = 0
        for one in unfinished(place.absolute(), session):
            result = await recover(one, given.dialer_from_journal(one), patience)
            print(result.line())
            untold += not result.told
        return 1 if untold else 0

    raise typer.Exit(_run(verbose, main))


@app.command()
def certs(
    directory: Annotated[Path, typer.Argument(help="Where the files go; made if it is missing.")],
    nodes: Annotated[list[str], typer.Argument(help="Host names or addresses, as they are written after --to.")],
    days: Annotated[int, typer.Option(help="How long they are valid.")] = 365,
) -> None:
    """Make a CA and a certificate for each node."""

    def main() -> int:
        from imgnode import certs as certificates  # for this command only: it is slow to import

        certificates.run(directory, nodes, days)
        return 0

    raise typer.Exit(run_program("imgproxy", False, main))


@app.command()
def hook() -> None:
    """The action script of criu dump (criu runs it; as a program without arguments: imgproxy-hook)."""


async def _run_capture(session: SourceSession) -> int:
    async with session.opened():
        await _check_machines(session)
        async with flat_nursery() as nursery:
            await nursery.start(session.capture)
            _say_ready(session.config.directory, remote=session.config.remote)
        if session.handover.decision is Decision.COMMITTED:
            with _noting_silence():
                await session.wait_settled()
    for line in summarise(session).lines():
        print(line)
    return _end(session)


async def _check_machines(session: SourceSession) -> None:
    """What can be known before a person starts criu dump: whether the machines go together."""
    here = await gather(Criu("criu"))
    found = machine_problems(here, session.destination) if session.destination else []
    if found:
        raise UsageError("; ".join(found))


def _say_ready(directory: Path, *, remote: bool) -> None:
    wire = "--remote" if remote else "--stream"
    command = f"criu dump {wire} -D {directory} --action-script {directory / SCRIPT} -t PID ..."
    _log.info("ready", dump_with=command)


@contextmanager
def _telling_if_stopped(session: SourceSession) -> Iterator[None]:
    """A signal ends us: say where that leaves the process."""
    try:
        yield
    except trio.Cancelled:
        committed = session.handover.decision is Decision.COMMITTED
        where = (
            "after the hand-over: the process belongs to the destination" if committed else "the process runs on here"
        )
        _log.warning(f"stopped; {where}")
        raise


@contextmanager
def _noting_silence() -> Iterator[None]:
    try:
        yield
    except (LinkLost, SessionAborted) as error:
        _log.error("given up here, but the destination cannot be asked what became of it", reason=str(error))


def _end(session: SourceSession) -> int:
    if session.handover.decision is not Decision.COMMITTED:
        return 1
    return 0 if session.settled else UNKNOWN


def _outcome(session: OneWaySession) -> int:
    word = session.out.outcome
    print(word if session.done else f"not {word}: {session.handover.reason}")
    return 0 if session.done else 1


def _wait_for(wait_restored: bool | None) -> WaitFor:
    if wait_restored is None:
        return WaitFor.AUTO
    return WaitFor.RESTORED if wait_restored else WaitFor.COMPLETE


@contextmanager
def _images_directory(journal: Path) -> Iterator[Path]:
    """A directory for CRIU, short enough for its socket; the log of a dump that failed is kept with the journal.

    The session makes it, once the journal names it: so a crash leaves none that nobody knows of.
    """
    place = Path("/run") if os.access("/run", os.W_OK) else Path(tempfile.gettempdir())
    directory = place / f"imgproxy-{secrets.token_hex(6)}"
    journal.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield directory
    finally:
        log = directory / LOG
        if log.exists():
            shutil.copy(log, journal / LOG)
        if directory.exists():
            shutil.rmtree(directory)


def _run(verbose: int, main: Callable[[], Awaitable[int]]) -> int:
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
        except (CannotConnect, LinkLost, SessionAborted, RestoreFailed, TransformError) as error:
            if verbose:
                _log.exception("failed")
            raise OSError(str(error)) from error

    return run_program("imgproxy", bool(verbose), program)
