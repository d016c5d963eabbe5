"""The two executables of one program, DIR/bin/NAME_x86-64 and DIR/bin/NAME_aarch64 as hetcc lays them out.

What a thread or a stack names by an address of one is found in the other by the site's id; functions and variables
have equal addresses. Their program headers are equal, so that the same bytes of both files are mapped to the same
addresses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from transform.errors import OptionError, TransformError
from transform.isa.likeness import differences
from transform.isa.thread import Place
from transform.sites import Kind, Site, read_sites

MACHINES = {"x86-64": "EM_X86_64", "aarch64": "EM_AARCH64"}
"""What ELF calls the ISAs that a process can change between, by our names of them."""

KEPT_PAIRS = 32
"""Pairs that are read once, and kept until their files change."""

FIRST_ERROR = 2**64 - 4095
"""Results of system calls from here on are errors."""


@dataclass(frozen=True)
class Executable:
    """One of the two."""

    path: Path
    size: int  #: of the file, in bytes
    sites: Mapping[int, Site]  #: by address
    by_id: Mapping[int, Site]
    segments: tuple[tuple[int, ...], ...]
    """Of each loaded one: offset in the file, address, bytes there, bytes in memory, flags."""
    _contents: bytes = field(repr=False)

    @classmethod
    def read(cls, path: Path, isa: str, sites: Sequence[Site] | None = None) -> "Executable":
        """OptionError for a file that is not of this ISA; TransformError for one hetcc did not make, unless its `sites`
        are given; OSError."""
        from elftools.common.exceptions import ELFError  # here: every start of imgproxy would pay for it, by a tenth
        from elftools.elf.elffile import ELFFile

        try:
            with path.open("rb") as file:
                elf = ELFFile(file)
                machine = elf["e_machine"]
                names = ("p_offset", "p_vaddr", "p_filesz", "p_memsz", "p_flags")
                loaded = [one for one in elf.iter_segments() if one["p_type"] == "PT_LOAD"]
                segments = tuple(tuple(one[name] for name in names) for one in loaded)
        except ELFError as error:
            raise OptionError(f"--binaries: {path}: no executable: {error}") from None
        if machine != MACHINES[isa]:
            raise OptionError(f"--binaries: {path}: is for {machine}, not for {isa}")
        sites = read_sites(path) if sites is None else sites
        contents = path.read_bytes()
        return cls(
            path, len(contents), {one.address: one for one in sites}, {one.id: one for one in sites}, segments, contents
        )

    def is_file(self, path: Path) -> bool:
        """Whether the file at `path` is the same, byte for byte. OSError."""
        return path.stat().st_size == self.size and path.read_bytes() == self._contents

    def place(self, pc: int, syscall_length: int, result: int, who: str) -> tuple[Place, Site]:
        """Where a thread at `pc` stands. TransformError, saying `who`, if it cannot change ISA there.

        `result`: of a system call that has been made. Events that one has brought are not yet of the layout of both.
        """
        site = self.sites.get(pc)
        if site is not None and site.kind is Kind.CALL:
            return Place.AFTER_CALL, site
        if site is not None and site.kind in (Kind.SYSCALL, Kind.WAIT):
            return Place.BEFORE_SYSCALL, site
        site = self.sites.get(pc - syscall_length)
        if site is not None and (site.kind is Kind.SYSCALL or (site.kind is Kind.WAIT and result >= FIRST_ERROR)):
            return Place.AFTER_SYSCALL, site
        raise TransformError(
            f"{who}: stands at {pc:#x}, where it cannot change ISA; stop it with `imgproxy trap` before the dump"
        )

    def address_of(self, site: int, place: Place, syscall_length: int) -> int:
        """Where a thread of that description stands here; before a system call, at the entry of the stub."""
        found = self.by_id[site]
        if place is Place.AFTER_SYSCALL:
            return found.address + syscall_length
        return found.target if place is Place.BEFORE_SYSCALL else found.address

    def bytes_at(self, address: int, length: int) -> bytes:
        """What is mapped there when the program starts, zeroes where the file has nothing."""
        for offset, start, in_file, in_memory, _ in self.segments:
            first = start & ~0xFFF
            if first <= address < start + in_memory:
                begin, end = offset - (start - first) + (address - first), offset + in_file
                return self._contents[begin : min(begin + length, end)].ljust(length, b"\0")
        raise TransformError(f"{self.path}: has nothing at {address:#x}")


@dataclass(frozen=True)
class Pair:
    """Both."""

    source: Executable
    target: Executable

    @classmethod
    def read(cls, directory: Path, name: str, source: str, target: str) -> "Pair":
        """Of the program `name`, from the ISA `source` to `target`. OptionError or TransformError if it is no pair."""
        paths = [directory / "bin" / f"{name}_{isa}" for isa in (source, target)]
        try:
            return _read(paths[0], paths[1], source, target, tuple(map(version, paths)))
        except OSError as error:
            raise OptionError(
                f"--binaries: {error.filename}: {error.strerror}; make the pair with hetcc --layout"
            ) from None

    def return_address(self, address: int) -> int | None:
        """The target's return address for one of the source's; None for what is none."""
        site = self.source.sites.get(address)
        return self.target.by_id[site.id].address if site is not None and site.kind is Kind.CALL else None


def version(path: Path) -> tuple[int, ...]:
    """Other numbers for another file at the same path. OSError."""
    status = path.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=KEPT_PAIRS)
def _read(one: Path, other: Path, source: str, target: str, _versions: tuple[tuple[int, ...], ...]) -> Pair:
    """Kept: what is checked before a process is frozen need not be read again while it is."""
    pair = Pair(Executable.read(one, source), Executable.read(other, target))
    from elftools.elf.elffile import ELFFile  # here: every start of imgproxy would pay for it, by a tenth

    with one.open("rb") as first, other.open("rb") as second:
        found = next(differences(ELFFile(first), ELFFile(second)), None)
    if found:
        raise TransformError(f"{one} and {other}: no pair: {found}")
    return pair
