"""Options that several commands of `imgproxy` share, and what they come to."""

import os
import ssl
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import structlog
import trio
import typer

from imgnode import proc
from imgnode.addresses import Address, FileAddress, TcpAddress, parse_address
from imgnode.command_line import Wire, parse_size
from imgnode.criu import CriuError
from imgnode.journal import Journal
from imgnode.preflight import check_images_dir
from imgproxy.convergence import Convergence
from imgproxy.dialer import Dialer
from imgproxy.near_live import tracks_changes
from imgproxy.one_way import OneWay, archive
from imgproxy.original_wire import OriginalWire
from imgwire.errors import UsageError
from transform.chain import Chain
from transform.errors import OptionError, TransformError
from transform.options import change_of_isa, transforms

_log = structlog.get_logger()

_CACHE = "Where the images go: HOST:PORT or unix:PATH of an imgcache, fd:IN,OUT to one, or file:PATH to park them."

To = Annotated[str, typer.Option("--to", help=_CACHE)]
ToCache = Annotated[str, typer.Option("--to", help="HOST:PORT or unix:PATH of an imgcache, or fd:IN,OUT to one.")]
OptionalTo = Annotated[str | None, typer.Option("--to", help=_CACHE)]
Name = Annotated[str, typer.Option("--session", help="Name of the session at the cache.")]
CaCert = Annotated[Path | None, typer.Option("--tls-cacert", help="CA that signed both nodes' certificates.")]
Cert = Annotated[Path | None, typer.Option("--tls-cert", help="This node's certificate.")]
Key = Annotated[Path | None, typer.Option("--tls-key", help="Its key.")]
Insecure = Annotated[bool, typer.Option("--insecure", help="Plain TCP even off loopback.")]
Compress = Annotated[str, typer.Option("--compress", help="off, auto or a zstd level from 1 to 19.")]
LimitRate = Annotated[str | None, typer.Option("--limit-rate", help="Bytes per second on the link, such as 100MB.")]
Dedup = Annotated[bool | None, typer.Option(help="Send no page that the cache has (no splice). Default: in rounds.")]
DigestPages = Annotated[bool, typer.Option("--digest-pages", help="Check pages, too, by a digest (no splice).")]
Patience = Annotated[float, typer.Option("--reconnect", help="Seconds that a cut of the link may last.")]
Arch = Annotated[str, typer.Option("--arch", help="x86-64 or aarch64: the ISA that the process changes to.")]
Binaries = Annotated[Path | None, typer.Option("--binaries", help="With --arch: DIR/bin has both executables.")]
MapPath = Annotated[list[str] | None, typer.Option("--map-path", help="OLD:NEW, a path prefix; repeatable.")]
Remap = Annotated[list[str] | None, typer.Option("--tcp-listen-remap", help="OLD:NEW ports; repeatable.")]
JournalDirectory = Annotated[Path | None, typer.Option("--journal", help="Directory of the journal.")]
ByWire = Annotated[Wire, typer.Option("--wire", help="criu: what is there is an original image-cache, no imgcache.")]
Snapshot = Annotated[
    str, typer.Option("--snapshot", help="With --wire criu: -D of the criu restore there. Default: the directory here.")
]
Timeout = Annotated[float, typer.Option("--timeout", help="Seconds that the hand-over may keep the tasks frozen.")]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="More to see.")]


#: Seconds frozen that are few enough, if nothing else is said: a person hardly notices, and no TCP peer gives up.
DOWNTIME_TARGET = 0.3

#: What the original wire has no place for, and the values that ask for nothing.
_LINK_ONLY: dict[str, tuple[object, ...]] = {
    "session": ("",),
    "compress": ("auto", "off"),
    "limit_rate": (None,),
    "digest_pages": (False,),
    "dedup": (None, False),
    "wait_restored": (None, False),
    "incremental": (False,),
    "arch": ("",),
    "binaries": (None,),
    "reconnect": (30.0,),
    "tls_cacert": (None,),
    "tls_cert": (None,),
    "tls_key": (None,),
    "metrics": (None,),
}


@dataclass(frozen=True)
class TlsFiles:
    """This node's identity, as named on the command line."""

    cacert: Path | None
    cert: Path | None
    key: Path | None

    def context(self) -> ssl.SSLContext | None:
        """What to connect with; None without TLS."""
        if self.cacert and self.cert and self.key:
            from imgnode.tls import client_context  # with TLS only: it is slow to import

            return client_context(self.cacert, self.cert, self.key)
        if self.cacert or self.cert or self.key:
            raise UsageError("TLS needs all of --tls-cacert, --tls-cert and --tls-key; `imgproxy certs` makes them")
        return None

    def words(self) -> list[str]:
        """For the journal: the absolute paths."""
        return [str(path.absolute()) for path in (self.cacert, self.cert, self.key) if path]


def dialer(address: Address, tls: TlsFiles, *, insecure: bool) -> Dialer:
    """How to reach a cache. Plain TCP leaves the machine only when asked for by name."""
    context = tls.context()
    if isinstance(address, TcpAddress) and context is None and not address.is_loopback and not insecure:
        raise UsageError(
            f"--to {address}: the process's memory would go there in the clear; use --tls-cacert, --tls-cert and "
            "--tls-key (`imgproxy certs` makes them), or say --insecure"
        )
    return Dialer(address, context if isinstance(address, TcpAddress) else None)


def dialer_from_journal(journal: Journal) -> Dialer:
    """How the session of a journal reached its cache."""
    files = [Path(word) for word in journal.fact("options") or ()]
    tls = TlsFiles(*files) if len(files) == 3 else TlsFiles(None, None, None)
    return dialer(parse_address(str(journal.fact("to"))), tls, insecure=True)


def chain(
    map_path: list[str] | None,
    remap: list[str] | None,
    arch: str = "",
    binaries: Path | None = None,
    resumed: Container[int] = (),
) -> Chain:
    """The transforms that were asked for."""
    try:
        return Chain(transforms(map_path or (), remap or (), arch, binaries, resumed))
    except OptionError as error:
        raise UsageError(str(error)) from error


def check_with_arch(arch: str, *, lazy: bool) -> None:
    """UsageError for what does not go together with a change of ISA."""
    if arch and lazy:
        raise UsageError("--arch: the ISA changes once all memory is over; leave --lazy out")


async def read_programs(arch: str, binaries: Path | None) -> None:
    """With --arch: read the executables before a process is frozen. UsageError for options that are wrong."""
    try:
        change = change_of_isa(arch, binaries)
    except OptionError as error:
        raise UsageError(str(error)) from error
    if change:
        await trio.to_thread.run_sync(change.read_programs)


def check_pair(pid: int, arch: str, binaries: Path | None) -> None:
    """That all processes under `pid` can change to `arch`, if they are to. UsageError."""
    try:
        change = change_of_isa(arch, binaries)
        if change is None:
            return
        from imgproxy.points import alive, check_tree  # with --arch only: they are slow to import

        for task in alive(pid):
            executable = Path(f"{proc.PROC}/{task}/exe")
            change.check(executable.readlink(), executable)
        check_tree(pid)
    except TransformError as error:
        raise UsageError(f"nothing was frozen: {error}") from error
    except OSError as error:
        raise UsageError(f"nothing was frozen: {error.filename}: {error.strerror}") from error


def rate(text: str | None) -> int | None:
    """Bytes per second."""
    value = parse_size(text) if text else None
    if value == 0:
        raise UsageError("--limit-rate 0: nothing would ever arrive; write a rate such as 100MB")
    return value


@dataclass(frozen=True)
class RoundsChoice:
    """How the memory goes over: `convergence` None: in one dump. `tracked`: by pre-dumps, else by copies."""

    convergence: Convergence | None = None
    tracked: bool = False


async def choose_rounds(rounds: str, target: float | None, criu: str, dedup: bool | None) -> RoundsChoice:
    """How often to send the memory before the dump, and by what this kernel allows, which is said. UsageError."""
    if target is not None and rounds != "auto":
        raise UsageError("--downtime-target: only --rounds auto ends by it; write that, too, or leave it out")
    if rounds != "auto" and not (rounds.isascii() and rounds.isdigit()):
        raise UsageError(f"--rounds {rounds}: write auto or a number")
    if rounds != "auto" and int(rounds) == 0:
        return RoundsChoice()
    try:
        tracks = await tracks_changes(criu)
    except CriuError as error:
        raise UsageError(str(error)) from error
    if not tracks and dedup is False:
        raise UsageError("--no-dedup: this kernel does not track changes of memory, so rounds need deduplication")
    if not tracks:
        _log.warning(
            "this kernel does not track changes of memory (soft-dirty): each round is a copy of the process, which "
            "freezes it for that, instead of a pre-dump"
        )
    if rounds != "auto":
        return RoundsChoice(Convergence(None, int(rounds)), tracks)
    return RoundsChoice(Convergence(DOWNTIME_TARGET if target is None else target), tracks)


def directories(images: list[Path], work: list[Path] | None, *, remote: bool) -> list[Path]:
    """The directories in which CRIU looks for its socket; the first is the program's own."""
    if not remote and (work or len(images) > 1):
        raise UsageError("one -D, and no -W: only criu --remote looks for its socket in several directories")
    found = [path.absolute() for path in (*images, *(work or ()))]
    for path in found:
        check_images_dir(path)
    return list(dict.fromkeys(found))


async def one_way(
    context: typer.Context, address: Address, wire: Wire, *, name: str, snapshot: str, insecure: bool
) -> OneWay | None:
    """The receiver that says nothing back, if one was asked for; None: an imgcache was. UsageError, CannotConnect."""
    if wire is Wire.CRIU:
        _refuse_what_only_the_link_has(context)
        if not isinstance(address, TcpAddress):
            raise UsageError(f"--to {address}: an original image-cache is reached by TCP only; write HOST:PORT")
        return await OriginalWire.connect(dialer(address, TlsFiles(None, None, None), insecure=insecure), snapshot)
    if context.params["snapshot"]:
        raise UsageError("--snapshot: only an original image-cache wants it; write --wire criu, too")
    if not isinstance(address, FileAddress):
        return None
    if context.params["arch"]:
        raise UsageError("--arch: the pages in an archive cannot be changed any more; give imgtransform a directory")
    return archive(address.path, name)


def _refuse_what_only_the_link_has(context: typer.Context) -> None:
    for name, nothing in _LINK_ONLY.items():
        if context.params.get(name, nothing[0]) not in nothing:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option}: an original image-cache (--wire criu) does not know it; leave it out")


def default_journal() -> Path:
    """Where the journal of `migrate` is: it must outlive the images directory."""
    if os.geteuid() == 0:
        return Path("/var/lib/imgproxy")
    state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state"
    return Path(state) / "imgproxy"
