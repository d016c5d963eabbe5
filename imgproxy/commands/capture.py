"""`imgproxy -D DIR --to ADDRESS`: takes one `criu dump` of a user, by --stream, by --remote or after pre-dumps."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import structlog
import typer

from imgnode import logs
from imgnode.addresses import parse_address
from imgnode.command_line import Version, Wire
from imgnode.criu import Criu
from imgnode.nursery import flat_nursery
from imgnode.preflight import gather, machine_problems
from imgproxy.commands import options as given
from imgproxy.commands.rounds import check_by_hand, say_ready_by_hand, warn_without_tracking
from imgproxy.commands.running import exit_code, run, telling_if_stopped, wait_for
from imgproxy.handover import Decision, HandoverPolicy
from imgproxy.hook import SCRIPT
from imgproxy.one_way import OneWaySession
from imgproxy.session import SourceConfig, SourceSession
from imgproxy.source import LinkLost, SessionAborted
from imgproxy.summary import summarise
from imgwire.errors import UsageError

_log = structlog.get_logger()


def capture(
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
    rounds: Annotated[
        bool, typer.Option("--rounds", help="For criu pre-dump as often as wanted, then criu dump: `imgproxy rounds`.")
    ] = False,
    page_server_port: Annotated[
        int, typer.Option("--page-server-port", help="With --rounds: port on 127.0.0.1 for their pages. Default: any.")
    ] = 0,
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
            help="Insist on the action script, without which the hand-over is not safe. Default: except with --remote "
            "without --arch."
        ),
    ] = None,
    timeout: given.Timeout = 300.0,
    compress: given.Compress = "auto",
    limit_rate: given.LimitRate = None,
    dedup: given.Dedup = None,
    digest_pages: given.DigestPages = False,
    reconnect: given.Patience = 30.0,
    arch: given.Arch = "",
    binaries: given.Binaries = None,
    map_path: given.MapPath = None,
    tcp_listen_remap: given.Remap = None,
    journal: given.JournalDirectory = None,
    tls_cacert: given.CaCert = None,
    tls_cert: given.Cert = None,
    tls_key: given.Key = None,
    insecure: given.Insecure = False,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus.")] = None,
    verbose: given.Verbose = 0,
    _version: Version = False,
) -> None:
    """Take one `criu dump` with --stream, with --remote or after pre-dumps, and hand the process over."""
    if context.invoked_subcommand is not None:
        return
    logs.configure(verbose)

    async def main() -> int:
        if to is None or not directory:
            raise UsageError("say where the images go (--to) and where criu dump runs (-D)")
        if incremental and not remote:
            raise UsageError("--incremental: only criu --remote is told of earlier rounds; write --remote, too")
        if page_server_port and not rounds:
            raise UsageError("--page-server-port: a page server is there for pre-dumps; write --rounds, too")
        if arch and hook is False:
            raise UsageError("--no-hook: what cannot change ISA is kept by the action script alone; leave it out")
        insists = hook if hook is not None else bool(arch) or not remote
        await given.read_programs(arch, binaries)
        here, *linked = given.directories(directory, work_dir, remote=remote)
        journals = (journal or here / "journal").absolute()
        address, transforms = parse_address(to), partial(given.chain, map_path, tcp_listen_remap, arch, binaries)
        if rounds:
            check_by_hand(here, address, wire, remote=remote, hook=hook)
            await warn_without_tracking()
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
                dedup=bool(dedup),
                timeout=timeout,
                remote=remote,
                linked=linked,
                hookless=not insists,
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
            arch=arch,
            name=session,
            policy=HandoverPolicy(wait_for(wait_restored), timeout),
            compress=compress,
            limit_rate=given.rate(limit_rate),
            dedup=rounds if dedup is None else dedup,
            digest_pages=digest_pages,
            hookless=not insists,
            remote=remote,
            by_hand=page_server_port if rounds else None,
            incremental=incremental,
            linked=tuple(linked),
            patience=reconnect,
            recover_options=tuple(tls.words()),
            metrics=metrics,
        )
        source = SourceSession(config, transforms)
        with telling_if_stopped(source):
            return await _run_capture(source)

    raise typer.Exit(run(verbose, main))


async def _run_capture(session: SourceSession) -> int:
    async with session.opened():
        await _check_machines(session)
        async with flat_nursery() as nursery:
            await nursery.start(session.capture)
            if session.config.by_hand is None:
                _say_ready(session.config.directory, remote=session.config.remote)
            else:
                say_ready_by_hand(session.config.directory)
        if session.handover.decision is Decision.COMMITTED:
            with _noting_silence():
                await session.wait_settled()
    for line in summarise(session).lines():
        print(line)
    return exit_code(session)


async def _check_machines(session: SourceSession) -> None:
    """What can be known before a person starts criu dump: whether the machines go together."""
    here = await gather(Criu("criu"))
    found = machine_problems(here, session.destination, session.config.arch) if session.destination else []
    if found:
        raise UsageError("; ".join(found))


def _say_ready(directory: Path, *, remote: bool) -> None:
    wire = "--remote" if remote else "--stream"
    command = f"criu dump {wire} -D {directory} --action-script {directory / SCRIPT} -t PID ..."
    _log.info("ready", dump_with=command)


@contextmanager
def _noting_silence() -> Iterator[None]:
    try:
        yield
    except (LinkLost, SessionAborted) as error:
        _log.error("given up here, but the destination cannot be asked what became of it", reason=str(error))


def _outcome(session: OneWaySession) -> int:
    word = session.out.outcome
    print(word if session.done else f"not {word}: {session.handover.reason}")
    return 0 if session.done else 1
