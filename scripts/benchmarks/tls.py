"""Mutual TLS against plain, over loopback, in turns."""

import trio

from imgnode import certs
from scripts.benchmarks.contenders import ByHand
from scripts.benchmarks.report import MIB, Report, Target, compared
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Setting, compare

#: TLS keeps at least this part of the plain rate.
OF_PLAIN = 0.4
NODE = "127.0.0.1"


async def tls(setting: Setting, workload: Workload) -> Report:
    """Compare at `workload`."""
    place = setting.directory / "certificates"
    if not place.exists():
        await trio.to_thread.run_sync(certs.make_set, place, [NODE], certs.DEFAULT_DAYS)
    files = {"cacert": place / "ca.pem", "cert": place / f"{NODE}.pem", "key": place / f"{NODE}.key"}
    options = tuple(word for name, path in files.items() for word in (f"--tls-{name}", str(path)))
    plain = ByHand("plain")
    secured = ByHand("mutual TLS", ("--compress", "off", *options), options)
    series = await compare(setting, workload, [plain, secured])
    report = compared(f"tls: {workload.total // MIB} MiB over loopback", series, plain.name)
    ratio = series[0].seconds / series[1].seconds
    report.targets.append(Target("mutual TLS, part of the plain rate", ratio, OF_PLAIN, at_most=False))
    return report
