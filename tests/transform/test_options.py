"""Transforms from the options of a command line."""

from pathlib import Path

import pytest

from transform.chain import Transform
from transform.errors import OptionError
from transform.identity import Identity
from transform.options import transforms

pytestmark = pytest.mark.t0


def test_options_choose_transforms() -> None:
    assert transforms() == []
    chosen = transforms(map_path=["/a:/b"], tcp_listen_remap=["1:2"])
    assert [transform.name for transform in chosen] == ["path map", "port map"]
    everything: list[Transform] = [*chosen, Identity()]
    assert not any(transform.needs_memory for transform in everything)


@pytest.mark.parametrize("options", [(["x"], [], ""), ([], ["x"], ""), ([], [], "aarch64")])
def test_wrong_values_are_refused(options: tuple[list[str], list[str], str]) -> None:
    with pytest.raises(OptionError):
        transforms(*options)


def test_executables_without_an_isa_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="is for a change of ISA"):
        transforms(binaries=tmp_path)
