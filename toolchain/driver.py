"""`hetcc`: a compiler driver like cc, whose executables come in pairs.

    hetcc -O2 a.c b.c -o prog                prog_x86-64, prog_aarch64, and prog, a copy of this machine's
    hetcc -O2 a.c -o prog --layout DIR       DIR/prog, DIR/bin/prog_x86-64, DIR/bin/prog_aarch64
    hetcc --check prog_x86-64 prog_aarch64   whether two executables are a pair

Objects (-c) hold IR; archives are made of them by any ar. Options that are not the link's go to clang.
"""

import os
import platform
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from toolchain.check import check_pair
from toolchain.compile import FLAGS, compile_c, include_flags
from toolchain.link import link
from toolchain.tools import AARCH64, ISAS, LLVM, X86_64, Isa, ToolError

#: Options of the compiler that take the next word, too.
_TAKE_A_WORD = (
    *("-I", "-D", "-U", "-include", "-isystem", "-MF", "-MT", "-MQ", "-idirafter", "-x", "-iquote"),
    *("-Xclang", "-Xpreprocessor", "-imacros", "-iprefix", "--param", "-mllvm"),
)
#: Options of the linker that take the next word, and say nothing here.
_IGNORED_WITH_A_WORD = ("-z", "-Xlinker", "-rpath", "-u", "-soname")
#: clang alone answers these.
_PASSED_ON = ("-E", "-M", "-MM", "--version", "-dumpmachine", "-dumpversion", "-dumpfullversion", "--help", "-###")
#: Libraries that are a part of the libc.
_IN_LIBC = ("c", "m", "pthread", "dl", "rt", "util", "crypt", "resolv", "xnet")
#: Options that say nothing here: executables are always static and at fixed addresses.
_IGNORED = (
    *("-static", "-no-pie", "-rdynamic", "-pthread", "-s", "-pipe", "-fPIC", "-fpic", "-fPIE", "-fpie", "-pie", "-v"),
    *("-m64", "-flto", "-fstack-protector", "-fstack-protector-strong", "-fstack-protector-all", "-fexceptions"),
    *("-funwind-tables", "-fasynchronous-unwind-tables", "-fstack-clash-protection", "-fcf-protection"),
)
_REFUSED = {
    "-shared": "a shared library cannot be a part of a pair: link it statically",
    "-S": "assembly would be of one ISA: use -c",
}


@dataclass
class Command:
    """A command line, understood."""

    sources: list[Path] = field(default_factory=list)
    objects: list[Path] = field(default_factory=list)
    archives: list[Path] = field(default_factory=list)
    options: list[str] = field(default_factory=list)  #: clang's
    output: Path | None = None
    only_compile: bool = False
    passes_on: bool = False  #: -E, -M, --version and the like: clang alone answers
    layout: Path | None = None


def parse(words: Sequence[str]) -> Command:
    """ToolError for what cannot be done."""
    command, libraries, places = Command(), [], []
    expanded = list(_expand(words))
    if expanded == ["-v"] or any(word in _PASSED_ON or word.startswith("-print") for word in expanded):
        return Command(options=expanded, passes_on=True)
    rest = iter(expanded)
    for word in rest:
        if word in _REFUSED:
            raise ToolError(f"{word}: {_REFUSED[word]}")
        if word == "-c":
            command.only_compile = True
        elif word in ("-o", "--layout"):
            value = Path(_next(rest, word))
            command.output, command.layout = (value, command.layout) if word == "-o" else (command.output, value)
        elif word in _IGNORED_WITH_A_WORD:
            _next(rest, word)
        elif word.startswith("-l"):
            libraries.append(word[2:] or _next(rest, word))
        elif word.startswith("-L"):
            places.append(Path(word[2:] or _next(rest, word)))
        elif word in _TAKE_A_WORD:
            command.options += [word, _next(rest, word)]
        elif word.startswith("-") and word != "-":
            command.options += [] if word in _IGNORED or word.startswith("-Wl,") else [word]
        else:
            _file(command, Path(word))
    command.archives += [_library(name, places) for name in libraries if name not in _IN_LIBC]
    return command


def _expand(words: Sequence[str]) -> Iterator[str]:
    """Response files (@FILE) as the words that they hold."""
    for word in words:
        if word.startswith("@") and Path(word[1:]).is_file():
            yield from _expand(shlex.split(Path(word[1:]).read_text()))
        else:
            yield word


def _next(rest: Iterator[str], word: str) -> str:
    try:
        return next(rest)
    except StopIteration:
        raise ToolError(f"{word}: what is to follow it is missing") from None


def _file(command: Command, path: Path) -> None:
    kinds = {".c": command.sources, ".i": command.sources, ".o": command.objects, ".a": command.archives}
    if path.suffix in (".s", ".S"):
        raise ToolError(f"{path}: assembly is of one ISA: it cannot be a part of a pair")
    if path.suffix not in kinds:
        raise ToolError(f"{path}: neither C nor an object or archive made of it")
    kinds[path.suffix].append(path)


def _library(name: str, places: Sequence[Path]) -> Path:
    file = name[1:] if name.startswith(":") else f"lib{name}.a"
    for place in places:
        if (place / file).is_file():
            return place / file
    raise ToolError(f"-l{name}: there is no {file} in {', '.join(map(str, places)) or 'any directory (-L)'}")


def here() -> Isa:
    """This machine's."""
    return AARCH64 if platform.machine() in ("aarch64", "arm64") else X86_64


def _compile_all(command: Command) -> None:
    if command.output and len(command.sources) > 1:
        raise ToolError("-o with -c and several sources: each has an object of its own")
    for source in command.sources:
        compile_c(source, command.output or Path(source.name).with_suffix(".o"), command.options)


def _link_all(command: Command) -> None:
    with TemporaryDirectory(prefix="hetcc-") as directory:
        compiled = [Path(directory) / f"{number}.o" for number in range(len(command.sources))]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for _ in threads.map(partial(compile_c, options=command.options), command.sources, compiled):
                pass
        objects = [*compiled, *command.objects]
        if not objects:
            raise ToolError("no sources and no objects: what is to be linked?")
        output = command.output or Path("a.out")
        pair = pair_of(output, command.layout)
        link(objects, command.archives, pair)
    if command.layout:
        output = command.layout / output.name
    shutil.copy2(pair[here()], output)


def pair_of(output: Path, layout: Path | None) -> dict[Isa, Path]:
    """Where the two executables go."""
    if layout is None:
        return {isa: output.with_name(f"{output.name}_{isa.name}") for isa in ISAS}
    (layout / "bin").mkdir(parents=True, exist_ok=True)
    return {isa: layout / "bin" / f"{output.name}_{isa.name}" for isa in ISAS}


def _pass_on(words: Sequence[str]) -> None:
    clang = f"clang-{LLVM}"
    os.execvp(clang, [clang, *FLAGS, *include_flags(), *words])


def main(words: Sequence[str] | None = None) -> int:
    """Run the driver; its exit code."""
    words = sys.argv[1:] if words is None else words
    try:
        if words[:1] == ["--check"]:
            if len(words) != 3:
                raise ToolError("--check: name two executables, for x86-64 and for aarch64")
            check_pair({X86_64: Path(words[1]), AARCH64: Path(words[2])})
            return 0
        command = parse(words)
        if command.passes_on:
            _pass_on(command.options)
        _compile_all(command) if command.only_compile else _link_all(command)
    except (ToolError, OSError) as error:
        print(f"hetcc: {error}", file=sys.stderr)
        return 1
    return 0
