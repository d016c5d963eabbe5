"""C to LLVM's IR, once for all ISAs: by clang's front end for aarch64, whose ABI has nothing that depends on the ISA.

What it must not decide by ISA is switched off: contraction of floating-point operations, outlined atomics, unwinding.
"""

from collections.abc import Sequence
from pathlib import Path

from toolchain.tools import AARCH64, home, run

#: What no option of a user's may change.
RULES = (
    "-ffp-contract=off",
    "-fmath-errno",
    "-U__FP_FAST_FMA",
    "-U__FP_FAST_FMAF",
    "-mno-outline-atomics",
    "-fno-common",
    "-fno-pic",
    "-fno-stack-protector",
    "-fno-unwind-tables",
    "-fno-asynchronous-unwind-tables",
)
#: Loops are unrolled as clang does it for x86-64: for aarch64 it would not when it does not know how often they turn. A
#: product of a sparse matrix and a vector took 1.45 times as long as plain clang's.
UNROLL = ("-mllvm", "-unroll-runtime", "-mllvm", "-unroll-allow-partial", "-mllvm", "-unroll-partial-threshold=28")
#: How every source is compiled, the libc's own included.
FLAGS = (f"--target={AARCH64.triple}", "-fsigned-char", "-Qunused-arguments", *UNROLL, *RULES)


def include_flags() -> list[str]:
    """The headers of our libc instead of the system's."""
    return ["-nostdinc", "-isystem", str(home() / "libc/include"), "-isystem", str(resource_headers())]


def resource_headers() -> Path:
    """clang's own headers: stdarg.h, float.h ..."""
    return Path(run("clang", "clang", "-print-resource-dir").strip()) / "include"


def compile_c(source: Path, output: Path, options: Sequence[str]) -> None:
    """Compile one file; `options` are the user's. ToolError in clang's words."""
    run(f"{source}", "clang", *FLAGS, *options, *RULES, *include_flags(), "-emit-llvm", "-c", source, "-o", output)
