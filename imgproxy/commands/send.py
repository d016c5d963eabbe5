"""`imgproxy send DIR`: the images of a finished dump, to a cache or into an archive."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from imgnode import logs
from imgnode.addresses import parse_address
from imgnode.command_line import Wire
from imgproxy.commands import options as given
from imgproxy.commands.running import run
from imgproxy.handover import HandoverPolicy, WaitFor
from imgproxy.one_way import OneWaySession
from imgproxy.session import SourceConfig, SourceSession


def send(
    context: typer.Context,
    images: Annotated[Path, typer.Argument(help="Directory of a finished criu dump.")],
    to: given.To,
    wire: given.ByWire = Wire.LINK,
    snapshot: given.Snapshot = "",
    session: given.Name = "",
    compress: given.Compress = "auto",
    limit_rate: given.LimitRate = None,
    arch: given.Arch = "",
    binaries: given.Binaries = None,
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
        address, transforms = parse_address(to), partial(given.chain, map_path, tcp_listen_remap, arch, binaries)
        await given.read_programs(arch, binaries)
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

    raise typer.Exit(run(verbose, main))
