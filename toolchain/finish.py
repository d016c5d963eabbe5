"""The last step of a link: the table of sites, which the code has filled but for the sizes of frames and its head.

The assembly knows the number of the frame that a site is in; sizes are known when all code has been generated.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from elftools.elf.elffile import ELFFile

from toolchain.tools import ToolError
from transform.sites import HEAD_SIZE, SECTION, pack_sites, unpack_records

#: The number of the frame in the runtime, which has none.
NO_FRAME = 0xFFFFFFFF


def finish_sites(executable: Path, sizes: Mapping[int, int]) -> None:
    """Put in the sizes of frames by their numbers, sort by address, write the head. ToolError for an id used twice."""
    with executable.open("r+b") as file:
        section = ELFFile(file).get_section_by_name(SECTION)
        if section is None:
            raise ToolError(f"{executable}: no section {SECTION}")
        sites = unpack_records(section.data()[HEAD_SIZE:])
        if len({site.id for site in sites}) != len(sites):
            raise ToolError(f"{executable}: two sites have one number")
        known = {**sizes, NO_FRAME: 0}
        packed = pack_sites(replace(one, frame=known[one.frame]) for one in sites)
        file.seek(section["sh_offset"])
        file.write(packed)
