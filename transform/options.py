"""Transforms from the options of a command line: the same for the offline command and for a session."""

from collections.abc import Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transform.chain import Transform
from transform.errors import OptionError
from transform.path_map import Mapping, PathMap
from transform.port_map import PortMap, parse_port_maps

if TYPE_CHECKING:
    from transform.isa.change import ChangeOfIsa


def transforms(
    map_path: Sequence[str] = (),
    tcp_listen_remap: Sequence[str] = (),
    arch: str = "",
    binaries: Path | None = None,
    resumed: Container[int] = (),
) -> list[Transform]:
    """The transforms that `--arch`, `--map-path` and `--tcp-listen-remap` ask for, none without values.

    `resumed`: as ChangeOfIsa has it. Transforms keep state: make new ones for each dump. `OptionError` for a value that
    is wrong.
    """
    change = change_of_isa(arch, binaries, resumed)
    chosen: list[Transform] = [change] if change else []
    if map_path:
        chosen.append(PathMap([Mapping.parse(value) for value in map_path]))
    if tcp_listen_remap:
        chosen.append(PortMap(parse_port_maps(tcp_listen_remap)))
    return chosen


def change_of_isa(arch: str, binaries: Path | None, resumed: Container[int] = ()) -> "ChangeOfIsa | None":
    """The transform that `--arch` and `--binaries` ask for; None without them. `OptionError`."""
    if not arch:
        if binaries is not None:
            raise OptionError(f"--binaries {binaries}: is for a change of ISA; write --arch, too")
        return None
    if binaries is None:
        raise OptionError(f"--arch {arch}: needs --binaries DIR, where the executables of both ISAs are")
    from transform.isa.change import ChangeOfIsa  # with --arch only: it is slow to import

    return ChangeOfIsa(arch, binaries, resumed)
