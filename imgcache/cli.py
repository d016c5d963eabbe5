"""The command line of `imgcache`."""

import json
import ssl
from pathlib import Path
from typing import Annotated

import trio
import typer

from imgcache.hook import SOCKET
from imgcache.host import HostConfig
from imgcache.server import CacheConfig, CacheServer
from imgnode import logs, users_script
from imgnode.addresses import Address, FileAddress, TcpAddress, parse_address
from imgnode.command_line import Version, Wire, parse_size, run_program, show_size
from imgnode.control_client import ControlClient, Request
from imgnode.preflight import check_images_dir
from imgwire.errors import UsageError

app = typer.Typer(
    help="Takes the images of migrating processes from imgproxy and serves them to `criu restore --stream`.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Directory = Annotated[Path, typer.Option("-D", "--images-dir", help="The images directory, as given to criu.")]


@app.callback(invoke_without_command=True)
def run(
    context: typer.Context,
    directory: Annotated[Path | None, typer.Option("-D", "--images-dir", help="Where criu finds the socket.")] = None,
    listen: Annotated[list[str] | None, typer.Option(help="HOST:PORT, unix:PATH or fd:IN,OUT; repeatable.")] = None,
    archive: Annotated[str | None, typer.Option("--from", help="file:PATH of a parked checkpoint.")] = None,
    remote: Annotated[bool, typer.Option("--remote", help="Serve the original criu restore --remote, too.")] = False,
    work_dir: Annotated[
        list[Path] | None, typer.Option("-W", "--work-dir", help="With --remote: the -W of criu's, if it has one.")
    ] = None,
    wire: Annotated[Wire, typer.Option(help="criu: original image-proxies connect, not imgproxy.")] = Wire.LINK,
    allow_restore: Annotated[bool, typer.Option(help="Run criu restore when a source asks for it.")] = False,
    criu: Annotated[str, typer.Option(help="The CRIU program.")] = "criu",
    action_script: Annotated[
        Path | None, typer.Option(help="A program that criu restore is to call as its action script, too.")
    ] = None,
    memory_limit: Annotated[str | None, typer.Option(help="Image bytes kept in memory, such as 8GiB.")] = None,
    spool: Annotated[Path | None, typer.Option(help="Directory for images past the memory limit.")] = None,
    release: Annotated[str, typer.Option(help="Give image memory back when `running` or as it is `read`.")] = "running",
    source_timeout: Annotated[float, typer.Option(help="Seconds for which a source may be away.")] = 60.0,
    journal: Annotated[Path | None, typer.Option(help="Directory of the journal; DIR/journal by default.")] = None,
    tls_cacert: Annotated[Path | None, typer.Option(help="CA that signed both nodes' certificates.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="This node's certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Plain TCP even off loopback.")] = False,
    metrics: Annotated[str | None, typer.Option(help="HOST:PORT for Prometheus.")] = None,
    verbose: Annotated[int, typer.Option("-v", "--verbose", count=True, help="More to see.")] = 0,
    _version: Version = False,
) -> None:
    """Take and serve images until SIGTERM."""
    if context.invoked_subcommand is not None:
        return
    logs.configure(verbose)

    def main() -> int:
        if release not in ("running", "read"):
            raise UsageError(f"--release {release}: write running or read")
        if remote and release == "read":
            raise UsageError("--release read: criu restore --remote reads images more than once; write running")
        if work_dir and not remote:
            raise UsageError("-W: only criu restore --remote looks for its socket there; write --remote")
        if wire is Wire.CRIU and (tls_cacert or tls_cert or tls_key):
            raise UsageError("--wire criu: an original image-proxy knows no TLS; leave the --tls options out")
        addresses = tuple(parse_address(text) for text in listen or ())
        tls = _tls(tls_cacert, tls_cert, tls_key, insecure, addresses)
        users = action_script and users_script.check(action_script)
        config = CacheConfig(
            directory=_images_dir(directory),
            listen=addresses,
            archive=_archive(archive),
            tls=tls,
            spool=spool and spool.absolute(),
            memory_limit=parse_size(memory_limit) if memory_limit else None,
            journal=journal and journal.absolute(),
            metrics=metrics,
            insecure=insecure,
            wire=wire,
            work_directories=tuple(_images_dir(path) for path in work_dir or ()),
            host=HostConfig(criu, allow_restore, release == "read", source_timeout, remote, users),
        )
        trio.run(CacheServer(config).run)
        return 0

    raise typer.Exit(run_program("imgcache", bool(verbose), main))


@app.command()
def status(
    directory: Directory, as_json: Annotated[bool, typer.Option("--json", help="One object a line.")] = False
) -> None:
    """Show the sessions of the cache that runs in DIR."""

    def main() -> int:
        sessions = list(_ask(directory, {"op": "status"}))
        if as_json:
            for session in sessions:
                print(json.dumps(session))
            return 0
        from imgcache.sessions_table import show  # with its library, which takes long to load

        show(sessions)
        return 0

    raise typer.Exit(run_program("imgcache", False, main))


@app.command()
def extract(session: str, target: Path, directory: Directory) -> None:
    """Write the images of SESSION to the directory TARGET, as criu would have."""

    def main() -> int:
        request = {"op": "extract", "session": session, "directory": str(target.absolute())}
        answer = _ask_one(directory, request)
        print(f"{answer['images']} images, {show_size(answer['bytes'])}, in {target}")
        return 0

    raise typer.Exit(run_program("imgcache", False, main))


@app.command()
def drop(
    session: str,
    directory: Directory,
    force: Annotated[bool, typer.Option(help="Even if these may be the only images.")] = False,
) -> None:
    """Throw the images of SESSION away."""

    def main() -> int:
        _ask_one(directory, {"op": "drop", "session": session, "force": force})
        return 0

    raise typer.Exit(run_program("imgcache", False, main))


@app.command()
def hook() -> None:
    """The action script of criu restore (criu runs it; as a program without arguments: imgcache-hook)."""


def _ask(directory: Path, request: Request) -> list[Request]:
    try:
        client = ControlClient(str(directory.absolute() / SOCKET))
    except (FileNotFoundError, ConnectionRefusedError):
        raise UsageError(f"no imgcache runs in {directory}") from None
    client.ask(request)
    answers = list(client.answers())
    client.close()
    return answers


def _ask_one(directory: Path, request: Request) -> Request:
    answers = _ask(directory, request)
    if not answers:
        raise UsageError(f"the imgcache in {directory} went away")
    if not answers[0].get("ok"):
        raise UsageError(str(answers[0].get("error")))
    return answers[0]


def _images_dir(directory: Path | None) -> Path:
    if directory is None:
        raise UsageError("say with -D DIR where criu restore looks for its images")
    check_images_dir(directory.absolute(), sessions=True)
    return directory.absolute()


def _archive(text: str | None) -> Path | None:
    if text is None:
        return None
    address = parse_address(text)
    if not isinstance(address, FileAddress):
        raise UsageError(f"--from {text}: write file:PATH")
    return address.path


def _tls(
    ca: Path | None, cert: Path | None, key: Path | None, insecure: bool, addresses: tuple[Address, ...]
) -> ssl.SSLContext | None:
    if ca and cert and key:
        from imgnode.tls import server_context  # with TLS only: it is slow to import

        return server_context(ca, cert, key)
    if ca or cert or key:
        raise UsageError("TLS needs all of --tls-cacert, --tls-cert and --tls-key; `imgproxy certs` makes them")
    for address in addresses:
        if isinstance(address, TcpAddress) and not address.is_loopback and not insecure:
            raise UsageError(
                f"--listen {address}: anybody there could start a process here; use --tls-cacert, --tls-cert and "
                "--tls-key (`imgproxy certs` makes them), or say --insecure"
            )
    return None
