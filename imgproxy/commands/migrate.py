"""`imgproxy migrate`: the whole migration as one command."""

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated

import trio
import typer

from imgnode import logs, users_script
from imgnode.addresses import parse_address
from imgproxy.commands import options as given
from imgproxy.commands.running import exit_code, run, telling_if_stopped, wait_for
from imgproxy.display import choose
from imgproxy.handover import HandoverPolicy
from imgproxy.migrate import LOG, MigrateConfig, check_lazy, check_process, migrate
from imgproxy.session import SourceConfig, SourceSession


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
    dedup: given.Dedup = None,
    digest_pages: given.DigestPages = False,
    reconnect: given.Patience = 30.0,
    arch: given.Arch = "",
    binaries: given.Binaries = None,
    map_path: given.MapPath = None,
    tcp_listen_remap: given.Remap = None,
    action_script: Annotated[
        Path | None, typer.Option(help="A program that criu dump here is to call as its action script, too.")
    ] = None,
    journal: given.JournalDirectory = None,
    tls_cacert: given.CaCert = None,
    tls_cert: given.Cert = None,
    tls_key: given.Key = None,
    insecure: given.Insecure = False,
    rounds: Annotated[str, typer.Option(help="Pre-dumps: how many, or auto: as long as they pay.")] = "0",
    downtime_target: Annotated[
        float | None, typer.Option(help="Seconds frozen that are few enough for --rounds auto. Default: 0.3.")
    ] = None,
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Run there before the memory is in its place, which then follows.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    verbose: given.Verbose = 0,
) -> None:
    """Migrate a running process to a cache that was started with --allow-restore. Further options go to CRIU."""
    logs.configure(verbose)

    async def main() -> int:
        tls = given.TlsFiles(tls_cacert, tls_cert, tls_key)
        journals = (journal or given.default_journal()).absolute()
        need = await trio.to_thread.run_sync(check_process, pid)
        given.check_with_arch(arch, lazy=lazy)
        await trio.to_thread.run_sync(given.check_pair, pid, arch, binaries)
        chosen = await given.choose_rounds(rounds, downtime_target, criu, dedup)
        reached = given.dialer(parse_address(to), tls, insecure=insecure)
        if lazy:
            scripted = action_script is not None
            check_lazy(context.args, wait_restored=wait_restored, redials=reached.redials, scripted=scripted)
        policy = HandoverPolicy(
            wait_for(wait_restored), timeout, one_attempt=True, lazy=lazy, follows=lazy and chosen.convergence is None
        )
        with ExitStack() as last, _images_directory(journals) as directory:
            config = SourceConfig(
                dialer=reached,
                directory=directory,
                journal=journals,
                arch=arch,
                name=session,
                policy=policy,
                compress=compress,
                limit_rate=given.rate(limit_rate),
                dedup=chosen.convergence is not None if dedup is None else dedup,
                digest_pages=digest_pages,
                patience=reconnect,
                need=need,
                rounds=chosen.tracked,
                temporary=True,
                action_script=action_script and users_script.check(action_script),
                recover_options=tuple(tls.words()),
            )
            resumed: set[int] = set()
            source = SourceSession(config, partial(given.chain, map_path, tcp_listen_remap, arch, binaries, resumed))
            last.callback(source.forget)
            display = choose(as_json)
            try:
                with telling_if_stopped(source):
                    trapped = resumed if arch else None
                    wanted = MigrateConfig(pid, criu, tuple(context.args), chosen.convergence, dedup, trapped)
                    await migrate(source, wanted, display)
            finally:
                display.close()
        return exit_code(source)

    raise typer.Exit(run(verbose, main))


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
