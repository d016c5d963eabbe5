"""Rate over loopback, plain: the programs against what else moves a process, on the same process, in turns."""

from scripts.benchmarks.contenders import ByHand, Contender, Directory, Migrate, Streamer, Tar
from scripts.benchmarks.report import MIB, Report, Target, compared
from scripts.benchmarks.subject import Workload
from scripts.benchmarks.trial import Setting, compare

#: Dump start to running, at most this many times what CRIU takes through a directory without sending anything.
AGAINST_DIRECTORY = 1.15
#: At least this many times as fast as tar over a TCP pipe, from a directory into a directory.
AGAINST_TAR = 3.0


async def rate(setting: Setting, workload: Workload) -> Report:
    """Compare at `workload`."""
    tmpfs = Tar("the same, on tmpfs", on_disk=False)
    contenders: list[Contender] = [ByHand(), Migrate(), Directory(), Tar(), tmpfs]
    if setting.streamer:
        contenders.append(Streamer(setting.streamer))
    series = await compare(setting, workload, contenders)
    took = {one.name: one.seconds for one in series}
    ours, directory = took[ByHand.name], took[Directory.name]
    title = f"rate: {workload.total // MIB} MiB over loopback, {workload.compressible} % compressible"
    report = compared(title, series, Directory.name)
    report.targets = [
        Target("imgproxy, times the time through a tmpfs directory", ours / directory, AGAINST_DIRECTORY),
        Target("imgproxy migrate, the same", took[Migrate.name] / directory, AGAINST_DIRECTORY),
        Target("times faster than tar over socat", took[Tar.name] / ours, AGAINST_TAR, at_most=False),
    ]
    report.notes.append(f"tar over socat from and to tmpfs: {took[tmpfs.name] / ours:.2f} times slower")
    if setting.streamer:
        ratio = took[Streamer.name] / ours
        report.targets.append(Target("times as fast as criu-image-streamer", ratio, 1.0, at_most=False))
    else:
        report.notes.append("criu-image-streamer is not on PATH (this project's own command does not count)")
    return report
