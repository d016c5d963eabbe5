"""Images directories through a chain."""

import errno
import os
from pathlib import Path

import pytest

from tests.transform.synthetic import extent, image, mm, pagemap, pstree, regular, vma
from transform import offline
from transform.chain import Chain, EndOfDump
from transform.errors import OptionError, TransformError
from transform.identity import Identity
from transform.offline import transform_directory
from transform.options import transforms

pytestmark = pytest.mark.t0
PAGE = 4096


@pytest.fixture
def source(tmp_path: Path) -> Path:
    directory = tmp_path / "in"
    directory.mkdir(mode=0o700)
    images = {
        "files.img": image("files", regular(1, b"/a/f")),
        "pstree.img": pstree(5),
        "mm-5.img": mm(vma(0x1000, 0x2000)),
        "pagemap-5.img": pagemap(1, extent(0x1000, 1)),
        "pages-1.img": bytes(PAGE),
        "dump.log": b"not an image",
    }
    for name, data in images.items():
        (directory / name).write_bytes(data)
        (directory / name).chmod(0o600)
    return directory


class Patching:
    """Writes to memory, holds files.img and adds an image: everything that a transform can do to a directory."""

    name = "patching"
    needs_memory = True
    warnings = ()

    def __init__(self, added: str = "added.img") -> None:
        self.added = added

    def wants(self, image: str) -> bool:
        return image == "files.img"

    def transform(self, image: str, data: bytes) -> None:
        assert (image, data[:1]) == ("files.img", b"\x19")

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        dump.memory(5).write(0x1000, b"patched")
        return {"files.img": b"held", self.added: b"new"}


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_wanted_images_change_and_the_rest_is_copied(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    target = tmp_path / "out"
    transform_directory(source, target, Chain(transforms(map_path=["/a:/b"])))
    expected = before | {"files.img": before["files.img"].replace(b"/a", b"/b")}
    assert contents(target) == expected
    assert contents(source) == before
    assert target.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in target.iterdir())


def test_patching_the_output_leaves_the_source(source: Path, tmp_path: Path) -> None:
    before = contents(source)
    (tmp_path / "out").mkdir()
    transform_directory(source, tmp_path / "out", Chain([Patching()]))
    after = contents(tmp_path / "out")
    assert after["pages-1.img"] == b"patched".ljust(PAGE, b"\0")
    assert (after["files.img"], after["added.img"]) == (b"held", b"new")
    assert contents(source) == before


@pytest.mark.parametrize("transform", [Patching("a/b"), *transforms(tcp_listen_remap=["1:2"])])
def test_a_failure_leaves_nothing(source: Path, tmp_path: Path, transform: Patching) -> None:
    with pytest.raises(TransformError):
        transform_directory(source, tmp_path / "out", Chain([transform]))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_file_systems_that_cannot_share_extents(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    transform_directory(source, tmp_path / "out", Chain([]))
    assert contents(tmp_path / "out") == contents(source)


def test_other_failures_of_copying_are_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", fail)
    with pytest.raises(OSError, match="No space left"):
        transform_directory(source, tmp_path / "out", Chain([]))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_directories_that_do_not_fit(source: Path, tmp_path: Path) -> None:
    def refusal(directory: Path, target: Path) -> str:
        with pytest.raises(OptionError) as refused:
            transform_directory(directory, target, Chain([]))
        return str(refused.value)

    empty, full = tmp_path / "empty", tmp_path / "full"
    empty.mkdir()
    full.mkdir()
    (full / "x").touch()
    out = tmp_path / "out"
    assert "not a directory" in refusal(tmp_path / "absent", out)
    assert "no images" in refusal(empty, out)
    assert "not an empty directory" in refusal(source, full)
    assert "not an empty directory" in refusal(source, full / "x")
    assert "does not exist" in refusal(source, tmp_path / "absent" / "out")
    (source / "parent").symlink_to("../other")
    assert "parent dump" in refusal(source, out)


def test_wanted_images_have_a_limit(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "COLLECTED_LIMIT", 3)
    with pytest.raises(TransformError, match="takes 3 at most"):
        transform_directory(source, tmp_path / "out", Chain([Identity()]))
