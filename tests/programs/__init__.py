"""C programs that tests start, dump and restore, and the Python side of each.

They are compiled once for each content of their source, into the cache that scripts/setup made, so that a process
restored from images finds the executable it was dumped with.
"""

import hashlib
import os
import subprocess
from dataclasses import dataclass, fields
from pathlib import Path

SOURCES = Path(__file__).parent
COMPILE = ("gcc", "-std=gnu17", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")


@dataclass(frozen=True)
class Programs:
    """Paths of the compiled programs: `memcheck` proves its own migration, `reaper` starts it and buries it; `edge`
    shows which of its pages are older or newer than the rest."""

    memcheck: Path
    reaper: Path
    edge: Path


def compile_programs(cache: Path) -> Programs:
    """Compile what the cache does not have yet. Raises CalledProcessError with the compiler's message on stderr."""
    return Programs(*(compile_program(field.name, cache) for field in fields(Programs)))


def compile_program(name: str, cache: Path) -> Path:
    source = SOURCES / f"{name}.c"
    digest = hashlib.sha256(" ".join(COMPILE).encode() + source.read_bytes()).hexdigest()[:16]
    binary = cache / "programs" / digest / name
    if not binary.exists():
        binary.parent.mkdir(parents=True, exist_ok=True)
        scratch = binary.with_suffix(f".{os.getpid()}")
        subprocess.run([*COMPILE, "-o", scratch, source], check=True)
        scratch.rename(binary)
    return binary
