"""A pair of executables made up: sites at other addresses on each ISA, and no file behind them."""

from pathlib import Path

from transform.isa.pair import Executable, Pair
from transform.sites import Kind, Site

TEXT, STUB, CALLS = 0x800000, 0x900000, 64
SEGMENTS = ((0x1000, TEXT, 0x3000, 0x3000, 5),)


def executable(isa: str, shift: int) -> Executable:
    """Calls' sites 0x40 apart, each `shift` bytes behind that, and one stub."""
    sites = [Site(TEXT + 0x40 * number + shift, number, Kind.CALL, frame=48) for number in range(CALLS)]
    sites.append(Site(STUB + shift, 0x80000000, Kind.SYSCALL, target=STUB))
    contents = bytes(0x1000) + isa.encode().ljust(0x3000, b"\x90")
    return Executable(
        Path(f"prog_{isa}"),
        len(contents),
        {one.address: one for one in sites},
        {one.id: one for one in sites},
        SEGMENTS,
        contents,
    )


def pair(source: str = "x86-64", target: str = "aarch64") -> Pair:
    shifts = {"x86-64": 5, "aarch64": 12}
    return Pair(executable(source, shifts[source]), executable(target, shifts[target]))
