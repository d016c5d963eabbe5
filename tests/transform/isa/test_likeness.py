"""Whether two executables are a pair: made-up ones; those of hetcc are compared in tests/toolchain."""

import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from tests.transform.isa.elves import elf
from transform.errors import OptionError, TransformError
from transform.isa.likeness import BUILD, differences
from transform.isa.pair import Pair
from transform.sites import SECTION, Kind, Site, pack_sites

pytestmark = pytest.mark.t0

FUNCTIONS = {"main": 0x800000, "other": 0x800010}


def sections(shift: int = 0, frame: int = 16, **more: bytes) -> Mapping[str, bytes]:
    sites = pack_sites([Site(0x800004 + shift, 1, Kind.CALL, frame)])
    return {
        ".text.equal": b"code",
        BUILD: b"0123",
        ".data.equal": b"data",
        SECTION: sites,
        **{f".{name.replace('_', '.')}": data for name, data in more.items()},
    }


def found(one: bytes, other: bytes) -> list[str]:
    return list(differences(ELFFile(io.BytesIO(one)), ELFFile(io.BytesIO(other))))


X86 = elf("x86-64", sections(), FUNCTIONS)


def test_a_pair() -> None:
    assert found(X86, elf("aarch64", sections(shift=8, text_isa=b"more", text_equal=b"of it"), FUNCTIONS)) == []


@pytest.mark.parametrize(
    ("other", "reasons"),
    [
        (elf("aarch64", sections(), FUNCTIONS, size=72), ["segment at 0x800000: p_memsz 64", "segment at"]),
        (
            elf("aarch64", sections(), {"main": 0x800004}),
            ["main: at 0x800000 and 0x800004", "other: at 0x800010 "],
        ),
        (elf("aarch64", sections(data_equal=b"dato"), FUNCTIONS), [".data.equal: differs at 0x3"]),
        (elf("aarch64", sections(data_equal=b"data+"), FUNCTIONS), [".data.equal: differs at 0x4"]),
        (elf("aarch64", sections(unified_build=b"0124"), FUNCTIONS), ["they are of two builds"]),
        (elf("aarch64", sections(frame=32), FUNCTIONS), ["site 1: "]),
        (elf("aarch64", sections(unified_sites=pack_sites([])), FUNCTIONS), ["they do not have the same sites"]),
    ],
)
def test_no_pair(other: bytes, reasons: list[str]) -> None:
    told = found(X86, other)
    assert len(told) == len(reasons)
    for line, reason in zip(told, reasons, strict=True):
        assert line.startswith(reason)


def test_what_does_not_say_of_which_build_it_is() -> None:
    without = {name: data for name, data in sections().items() if name != BUILD}
    both = [elf(isa, without, FUNCTIONS) for isa in ("x86-64", "aarch64")]
    assert found(both[0], both[1]) == ["one does not say of which build it is: an older hetcc made it; link it again"]


def test_a_program_of_another_compiler() -> None:
    with pytest.raises(TransformError, match="only what hetcc has made can change ISA"):
        found(elf("x86-64", {BUILD: b""}, FUNCTIONS), elf("aarch64", {BUILD: b""}, FUNCTIONS))


def test_files(tmp_path: Path) -> None:
    """Read once, and again when one is another."""
    (tmp_path / "bin").mkdir()
    x86, arm = (tmp_path / f"bin/prog_{isa}" for isa in ("x86-64", "aarch64"))
    x86.write_bytes(X86)
    with pytest.raises(OptionError, match="prog_aarch64: No such file or directory; make the pair with hetcc"):
        Pair.read(tmp_path, "prog", "x86-64", "aarch64")
    arm.write_bytes(elf("aarch64", sections(shift=8), FUNCTIONS))
    pair = Pair.read(tmp_path, "prog", "x86-64", "aarch64")
    assert pair is Pair.read(tmp_path, "prog", "x86-64", "aarch64")
    assert pair.return_address(0x800004) == 0x80000C
    assert pair.source.is_file(x86) and not pair.source.is_file(arm)
    arm.write_bytes(elf("aarch64", sections(unified_build=b"next"), FUNCTIONS))
    with pytest.raises(TransformError, match="no pair: they are of two builds"):
        Pair.read(tmp_path, "prog", "x86-64", "aarch64")
    arm.write_bytes(X86)
    with pytest.raises(OptionError, match="prog_aarch64: is for EM_X86_64, not for aarch64"):
        Pair.read(tmp_path, "prog", "x86-64", "aarch64")
