"""The link, which does the work on the whole program: IR of all objects to a pair of executables.

objects, archives -> one module -> `unify` -> for each ISA: pad frames, generate code, mark sites  (until frames are
equal) -> sections of both -> linker script, with and without ranges of equal size -> two executables -> checks
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

from toolchain.assembly import mark_sites
from toolchain.check import check_pair
from toolchain.code import generate_code
from toolchain.finish import finish_sites
from toolchain.frames import Pad, add_pads, frames_of
from toolchain.layout import linker_script, ranges_of, sections_of
from toolchain.tools import AARCH64, ISAS, X86_64, Isa, ToolError, home, run

#: What must stay although nothing in IR names it: the runtime's assembly does.
ROOTS = ("_start_c", "__unified_main", "__cancel", "__unified_deliver")
#: What code generation must not do itself (code.py), done before. A Fourier transform took 1.18 times as long as plain
#: clang's with it, 1.23 times without.
LOOPS = "function(loop(reduce-quiet-loops))"
#: Rounds until the frames of both ISAs are of equal size. Lua takes two.
MAX_ROUNDS = 8


def link(inputs: Sequence[Path], archives: Sequence[Path], outputs: dict[Isa, Path]) -> None:
    """Make the pair. `inputs`: IR objects, all linked; `archives`: of IR, what is needed of them."""
    with TemporaryDirectory(prefix="hetcc-") as directory:
        _Link(Path(directory)).run(inputs, archives, outputs)


class _Link:
    def __init__(self, place: Path) -> None:
        self._place = place
        self._unified = place / "unified.bc"
        self._plugin = f"-load-pass-plugin={home() / 'pass/UnifyingPass.so'}"

    def run(self, inputs: Sequence[Path], archives: Sequence[Path], outputs: dict[Isa, Path]) -> None:
        self._unify(self._whole_program(inputs, archives))
        objects = self._equal_frames()
        everything = {isa: [objects[isa], home() / f"runtime/{isa.name}.o"] for isa in ISAS}
        sections = {isa: sections_of(paths) for isa, paths in everything.items()}
        build = self._build(everything)
        self._executables(everything, linker_script(sections, build), outputs)
        self._executables(everything, linker_script(sections, build, ranges_of(list(outputs.values()))), outputs)
        for isa in ISAS:
            finish_sites(outputs[isa], {number: one.size for number, one in frames_of(isa, objects[isa]).items()})
        check_pair(outputs)

    def _executables(self, everything: dict[Isa, list[Path]], layout: str, outputs: dict[Isa, Path]) -> None:
        script = self._place / "layout.ld"
        script.write_text(layout)
        page = ["-z", "max-page-size=4096"]
        for isa, paths in everything.items():
            leaves = [home() / f"leaves/{isa.name}.a", home() / f"leaves/{isa.name}/libgcc.a"]
            run("link", "ld.lld", "-static", "--no-rosegment", *page, "-T", script, *paths, *leaves, "-o", outputs[isa])

    def _build(self, everything: dict[Isa, list[Path]]) -> bytes:
        """What tells this program from every other, on both ISAs: two of the same layout may be different programs."""
        digest = sha256()
        for path in (self._unified, *everything[X86_64], *everything[AARCH64]):
            digest.update(sha256(path.read_bytes()).digest())
        return digest.digest()

    def _whole_program(self, inputs: Sequence[Path], archives: Sequence[Path]) -> Path:
        program = self._place / "program.bc"
        run("link", "llvm-link", home() / "libc/crt.bc", *inputs, "-o", program)
        again = archives[:-1]  # they may need each other
        for archive in [*archives, *again, home() / "libc/libc.a"]:
            run("link", "llvm-link", program, "--only-needed", archive, "-o", program)
        return program

    def _unify(self, program: Path) -> None:
        kept = f"-internalize-public-api-list={','.join(ROOTS)}"
        passes = f"-passes=lower-dynamic,internalize,globaldce,{LOOPS},unify,verify"
        run("link", "opt", self._plugin, passes, kept, program, "-o", self._unified)

    def _equal_frames(self) -> dict[Isa, Path]:
        pads: dict[Isa, dict[int, Pad]] = {isa: {} for isa in ISAS}
        for _ in range(MAX_ROUNDS):
            with ThreadPoolExecutor(len(ISAS)) as threads:
                objects = dict(zip(ISAS, threads.map(lambda isa: self._generate(isa, pads[isa]), ISAS), strict=True))
            if not add_pads({isa: frames_of(isa, obj) for isa, obj in objects.items()}, pads):
                return objects
        raise ToolError(f"frames: not of equal size after {MAX_ROUNDS} rounds")

    def _generate(self, isa: Isa, pads: dict[int, Pad]) -> Path:
        listed = self._place / f"{isa.name}.pads"
        listed.write_text("".join(f"{number} {pad.below} {pad.above}\n" for number, pad in pads.items()))
        assembly, obj = (self._place / f"{isa.name}{suffix}" for suffix in (".s", ".o"))
        generate_code(isa, self._unified, assembly, listed)
        marked = mark_sites(isa, assembly.read_text("latin-1"))  # strings stand there as bytes
        assembly.write_text(marked.text, "latin-1")
        run("code", "clang", f"--target={isa.triple}", "-c", assembly, "-o", obj)
        return obj
