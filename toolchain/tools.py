"""The programs of LLVM, and what was built of ours: where they are, and how they are run.

A program that fails has its own words for it; a person gets them, below a line that says what was done.
"""

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

#: The version of LLVM whose passes and code generators are known to keep to our frames.
LLVM = 19
HERE = Path(__file__).resolve().parent


class ToolError(Exception):
    """A program or input could not be made into a pair; the text is for a person."""


@dataclass(frozen=True)
class Isa:
    """An instruction set. `name`: as in the names of binaries; `triple`: LLVM's."""

    name: str
    triple: str

    @property
    def directory(self) -> str:
        """As folders of sources are called."""
        return self.triple.partition("-")[0]


X86_64 = Isa("x86-64", "x86_64-linux-musl")
AARCH64 = Isa("aarch64", "aarch64-linux-musl")
ISAS = (X86_64, AARCH64)


def home() -> Path:
    """What scripts/toolchain has built: pass, libc, runtime."""
    cache = os.environ.get("IMGPROXY_CACHE") or HERE.parent / ".cache"
    return Path(os.environ.get("HETCC_HOME") or Path(cache) / "toolchain")


def run(what: str, program: str, *arguments: str | Path) -> str:
    """Run a program of LLVM to its end; its output. ToolError with its words, headed by `what`."""
    return execute(what, [f"{program}-{LLVM}", *arguments])


def execute(what: str, words: Sequence[str | Path]) -> str:
    """The same for any program."""
    try:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise ToolError(f"{what}: there is no {words[0]}; scripts/toolchain installs it") from None
    if done.returncode:
        raise ToolError(f"{what}:\n{done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
