"""Builds what every pair is linked with, from musl's source: headers, libc (IR), leaves, runtime.

    python -m toolchain.build MUSL-SOURCE OUTPUT

The libc is compiled like a user's program, for aarch64 with our own few headers in front of musl's, so that it can be
unified with it. Leaves are functions that code generation calls by itself (memcpy, floor ...): nothing stops there, so
each ISA has its own, in C's convention, with musl's own assembly where there is some.
"""

import re
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolchain.compile import FLAGS, resource_headers
from toolchain.tools import AARCH64, HERE, ISAS, X86_64, Isa, execute, run

#: Sources that the runtime replaces.
_OURS = frozenset(
    f"{name}.c"
    for name in [
        "__set_thread_area",
        "__unmapself",
        "thread/clone",
        "syscall_cp",
        "restore",
        "sigsetjmp",
        "siglongjmp",
        "fenv",
        "setjmp",
        "longjmp",
    ]
)
#: As in Calls.cpp, `isLeafName`.
LEAVES = [
    "memcpy",
    "memmove",
    "memset",
    "memcmp",
    "bcmp",
    "floor",
    "floorf",
    "floorl",
    "ceil",
    "ceilf",
    "ceill",
    "trunc",
    "truncf",
    "truncl",
    "rint",
    "rintf",
    "rintl",
    "nearbyint",
    "nearbyintf",
    "nearbyintl",
    "round",
    "roundf",
    "roundl",
    "fma",
    "fmaf",
    "fmal",
    "fmin",
    "fminf",
    "fminl",
    "fmax",
    "fmaxf",
    "fmaxl",
    "sqrt",
    "sqrtf",
    "sqrtl",
    "fmod",
    "fmodf",
    "fmodl",
]
#: System calls whose structures in memory differ and are not converted, or that know registers: ENOSYS on all ISAs.
_NOT_CALLED = frozenset(["openat2", "clone3", "ptrace", "rseq"])
#: As a macro, so that it is a setjmp of its caller.
_SIGSETJMP = """#define setjmp setjmp
int __unified_mask_jump(jmp_buf, int, int);
#define sigsetjmp(buffer, save) __unified_mask_jump(buffer, setjmp(buffer), save)
"""
_MUSL_FLAGS = ("-O2", "-std=c99", "-nostdinc", "-ffreestanding", "-D_XOPEN_SOURCE=700", "-w")
#: One thread for each processor that compiles.
_THREADS = 2


class Builder:
    """Builds from `source` (musl) into `out`."""

    def __init__(self, source: Path, out: Path) -> None:
        self._source, self._out = source, out

    def run(self) -> None:
        """Build everything."""
        self._headers()
        self._libc()
        for isa in ISAS:
            self._leaves(isa)
            self._runtime(isa)

    def _headers(self) -> None:
        """What musl's own `make install-headers` makes, for aarch64."""
        include = self._out / "libc/include"
        shutil.copytree(self._source / "include", include)
        bits = include / "bits"
        for folder in ("arch/generic/bits", "arch/aarch64/bits"):
            shutil.copytree(self._source / folder, bits, dirs_exist_ok=True)
        arch = self._source / "arch/aarch64/bits"
        types = [arch / "alltypes.h.in", self._source / "include/alltypes.h.in"]
        sed = self._source / "tools/mkalltypes.sed"
        (bits / "alltypes.h").write_text(execute("headers", ["sed", "-f", sed, *types]))
        calls = (arch / "syscall.h.in").read_text()
        (bits / "syscall.h").write_text(calls + re.sub(r"__NR_", "SYS_", calls))
        header = include / "setjmp.h"
        header.write_text(header.read_text().replace("#define setjmp setjmp\n", _SIGSETJMP))
        (self._out / "version.h").write_text('#define VERSION "unified"\n')

    def _includes(self) -> list[str]:
        arch = [HERE / "libc/arch", self._source / "arch/aarch64", self._source / "arch/generic", self._out]
        internal = [self._source / "src/include", self._source / "src/internal", self._out / "libc/include"]
        return [f"-I{folder}" for folder in [*arch, *internal]]

    def _libc(self) -> None:
        objects = self._out / "objects"
        objects.mkdir()

        def compile_one(source: Path) -> Path:
            relative = source.relative_to(HERE / "libc" if HERE in source.parents else self._source / "src")
            target = objects / ("_".join(relative.parts).removesuffix(".c") + ".o")
            run(
                str(relative),
                "clang",
                *FLAGS,
                *_MUSL_FLAGS,
                *self._includes(),
                "-emit-llvm",
                "-c",
                source,
                "-o",
                target,
            )
            return target

        with ThreadPoolExecutor(_THREADS) as threads:
            compiled = list(threads.map(compile_one, self._sources()))
        run("libc.a", "llvm-ar", "rcs", self._out / "libc/libc.a", *compiled)
        crt: list[str | Path] = ["-emit-llvm", "-c", HERE / "libc/crt.c", "-o", self._out / "libc/crt.bc"]
        headers: list[str | Path] = [
            "-nostdinc",
            "-isystem",
            self._out / "libc/include",
            "-isystem",
            resource_headers(),
        ]
        run("crt.c", "clang", *FLAGS, "-O2", "-ffreestanding", "-D_GNU_SOURCE", *headers, *crt)
        shutil.rmtree(objects)

    def _sources(self) -> Iterator[Path]:
        """All of musl that is not the leaves' or ours; and ours. `dlopen` is that of static programs: it fails."""
        yield from sorted((HERE / "libc/src").glob("*.c"))
        skipped = _OURS | {f"{name}.c" for name in LEAVES}
        for pattern in ("src/*/*.c", "src/malloc/mallocng/*.c"):
            for source in sorted(self._source.glob(pattern)):
                if not skipped & {source.name, f"{source.parent.name}/{source.name}"}:
                    yield source

    def _leaves(self, isa: Isa) -> None:
        place = self._out / f"leaves/{isa.name}"
        place.mkdir(parents=True)
        target = [f"--target={isa.triple}", "-fno-builtin", "-fno-pic", "-fno-stack-protector"]
        target += ["-fno-asynchronous-unwind-tables", *(["-mlong-double-128"] if isa is X86_64 else [])]
        objects = []
        for name in LEAVES:
            source = self._leaf(name, isa)
            if source is not None:
                objects.append(place / f"{name}.o")
                flags = [*target, *_MUSL_FLAGS, *self._includes()]
                run(name, "clang", *flags, "-c", source, "-o", objects[-1])
        run("leaves", "llvm-ar", "rcs", f"{place}.a", *objects)

    def _leaf(self, name: str, isa: Isa) -> Path | None:
        """The source of a leaf: of this ISA if there is one; long double is aarch64's on both, so generic."""
        for folder in ("string", "math"):
            own = [] if name.endswith("l") else [f"{folder}/{isa.directory}/{name}{end}" for end in (".s", ".S", ".c")]
            for candidate in [*own, f"{folder}/{name}.c"]:
                if (self._source / "src" / candidate).exists():
                    return self._source / "src" / candidate
        return None

    def _runtime(self, isa: Isa) -> None:
        (self._out / "runtime").mkdir(exist_ok=True)
        numbers = self._out / "runtime/numbers.h"
        numbers.write_text(system_call_numbers(self._source))
        source = HERE / f"runtime/{isa.directory}/runtime.S"
        target = self._out / f"runtime/{isa.name}.o"
        run("runtime", "clang", f"--target={isa.triple}", f"-I{numbers.parent}", "-c", source, "-o", target)


def system_call_numbers(source: Path) -> str:
    """For the assembler: x86-64's number of each of aarch64's system calls, -1 if it has none."""
    arm, x86 = (_numbers(source / f"arch/{isa.directory}/bits/syscall.h.in") for isa in (AARCH64, X86_64))
    names = {number: name for name, number in arm.items() if name not in _NOT_CALLED}
    lines = [f"\t.short {x86.get(names.get(number, ''), -1)}" for number in range(max(names) + 1)]
    return "\n".join([*lines, f".set unified_numbers_count, {len(lines)}"]) + "\n"


def _numbers(header: Path) -> dict[str, int]:
    found = re.finditer(r"#define __NR_(\w+)\s+(\d+)", header.read_text())
    return {one[1]: int(one[2]) for one in found}


if __name__ == "__main__":
    Builder(Path(sys.argv[1]), Path(sys.argv[2])).run()
