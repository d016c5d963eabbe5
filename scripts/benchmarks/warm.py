"""Free memory that is really there.

A virtual machine whose host takes back free pages (free page reporting) pays for each page that is used again, once:
4 s per GiB instead of 0.6 on the machine where this was written, after two seconds of not being used. Whoever needs
more memory at a time would seem slow. So right before each dump, of every contender alike, as much as the largest needs
is used and freed.
"""

import sys
from pathlib import Path

_USE = """
import mmap, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(23)  # MADV_POPULATE_WRITE
"""

#: Times the size of what is moved: its images and its copy at the destination.
FACTOR = 3
#: Of the memory that is available at most this part is used.
PART = 0.5


def warming(size: int) -> list[str]:
    """The command that uses and frees memory for moving `size` bytes."""
    wanted = min(FACTOR * size, int(_available() * PART))
    return [sys.executable, "-S", "-c", _USE, str(wanted)]


def _available() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    found = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(found["MemAvailable"].split()[0]) * 1024
