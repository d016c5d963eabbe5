"""The programs of scripts/bench toolchain, each built twice: by clang -O2 with musl, and by hetcc.

Sources of others are Debian's source packages; scripts/bench has fetched them, and has had musl built by plain clang,
before it took the network away.
"""

import os
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.nodes import CommandFailed

ROOT = Path(__file__).resolve().parent.parent.parent
#: Of the NAS Parallel Benchmarks: those which the tests have.
KERNELS = ("ep", "is", "cg", "mg", "ft")
FLAGS = ("-O2", "-DLUA_COMPAT_5_3", "-DLUA_USE_POSIX", "-D_FILE_OFFSET_BITS=64", "-DHAVE_UNISTD_H", "-w", "-static")
BZIP2 = ("blocksort", "huffman", "crctable", "randtable", "compress", "decompress", "bzlib", "bzip2")


@dataclass(frozen=True)
class Built:
    """A program: bytes of what is loaded, and seconds of its build; plain, and as a pair."""

    name: str
    sizes: tuple[int, int]
    seconds: tuple[float, float]

    @property
    def ratio(self) -> str:
        """Of the sizes."""
        return f"{self.sizes[1] / self.sizes[0]:.2f}"


def build_all(place: Path, say: Callable[[str], object]) -> list[Built]:
    """Every program as place/built/plain/NAME and place/built/pair/NAME."""
    for kind in ("plain", "pair"):
        (place / "built" / kind).mkdir(parents=True)
    return [_both(place / "built", name, files, say) for name, files in _sources(place).items()]


def _sources(place: Path) -> dict[str, list[Path]]:
    for package in ("lua5.4", "bzip2", "zlib"):
        run([ROOT / "scripts/toolchain", "unpack", package, place / package.removesuffix("5.4")])
    return {
        "npb": sorted((ROOT / "tests/toolchain/programs/npb").glob("*.c")),
        "lua": [path for path in sorted((place / "lua/src").glob("*.c")) if path.name != "luac.c"],
        "bzip2": [place / f"bzip2/{name}.c" for name in BZIP2],
        "minigzip": [*sorted((place / "zlib").glob("*.c")), place / "zlib/test/minigzip.c"],
    }


def _both(built: Path, name: str, files: Sequence[Path], say: Callable[[str], object]) -> Built:
    say(f"building {name} both ways")
    cache = Path(os.environ["IMGPROXY_CACHE"])
    compilers = {"plain": cache / "toolchain/plain/bin/musl-clang", "pair": cache / "venv/bin/hetcc"}
    seconds, sizes = [], []
    for kind, compiler in compilers.items():
        include = f"-I{files[0].parent}"
        began = time.monotonic()
        run([compiler, *FLAGS, include, *files, "-o", built / kind / name, "-lm"])
        seconds.append(time.monotonic() - began)
        sizes.append(_loaded(built / kind / name))
    return Built(name, (sizes[0], sizes[1]), (seconds[0], seconds[1]))


def _loaded(program: Path) -> int:
    """Bytes of code and data that are loaded from the file: the rest is for debuggers, and the table of sites."""
    lines = run(["size", program]).splitlines()
    text, data = lines[1].split()[:2]
    return int(text) + int(data)


def run(words: Sequence[str | Path]) -> str:
    """Run a command to its end; what it said. CommandFailed with that if it failed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CommandFailed(f"{words[0]}: {done.stdout}{done.stderr}")
    return done.stdout
