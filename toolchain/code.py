"""Code generation for one ISA, with the proof that the code keeps no state beside the frame.

It is LLVM's own, as llc has it, in a program of ours (pass/Codegen.cpp), because the proof is a pass between those of
code generation.
"""

from pathlib import Path

from toolchain.tools import Isa, execute, home

#: Code generation without what would keep state in registers or hidden slots across a call, or merge what the pass has
#: split. On AArch64 its own IR passes would do that, too.
LLC_FLAGS = (
    "-relocation-model=static",
    "-code-model=small",
    "-stack-symbol-ordering=0",
    "-function-sections",
    "-enable-global-merge=0",
    "-disable-cgp",
    "-disable-lsr",
    "-disable-constant-hoisting",
    "-disable-machine-licm",
    "-disable-machine-cse",
    "-disable-postra-machine-licm",
    "-aarch64-enable-atomic-cfg-tidy=0",
    "-aarch64-enable-loop-data-prefetch=0",
    "-aarch64-enable-falkor-hwpf-fix=0",
    "-aarch64-enable-gep-opt=0",
    "-aarch64-enable-copyelim=0",
)


def generate_code(isa: Isa, module: Path, assembly: Path, pads: Path) -> None:
    """`pads`: lines of the number of a frame and the bytes that it lacks, below and above. ToolError names function
    and block."""
    program = home() / "pass/unified-codegen"
    words: list[str | Path] = [
        program,
        *LLC_FLAGS,
        f"-mtriple={isa.triple}",
        f"-frame-pads={pads}",
        module,
        "-o",
        assembly,
    ]
    execute(f"code of {isa.name}", words)
