"""Images as JSON."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.transform.synthetic import (
    BY_NAME,
    UNKNOWN_HIGH,
    extent,
    frame,
    image,
    inet,
    mm,
    pagemap,
    regular,
    vma,
    word,
)  # fmt: skip
from transform import show as show_module
from transform.errors import ImageError
from transform.images.kinds import COMMON_MAGIC
from transform.images.proto import payload_pb2, task_pb2
from transform.show import Json, show, show_file

pytestmark = pytest.mark.t0


def entries_of(shown: Json) -> Any:
    assert isinstance(shown, dict)
    return shown["entries"]


def test_names_paths_addresses_and_unknown_fields() -> None:
    raw = regular(1, b"/caf\xc3\xa9/\xff").SerializeToString() + UNKNOWN_HIGH * 2 + b"\xc2\x3e\x02ab"
    shown = show("files.img", image("files", raw, inet(2, 80, family=10), inet(3, 80)))
    reg, six, four = entries_of(shown)
    assert reg == {
        "type": "REG", "id": 1, "999": ["0x1", "0x1"], "1000": "6162",
        "reg": {"id": 1, "flags": 0, "pos": 3, "name": "/café/\\xff", "size": 77},
    }  # fmt: skip
    assert (six["isk"]["src_addr"], four["isk"]["src_addr"], four["isk"]["src_port"]) == ("::1", "127.0.0.1", 80)


def test_memory_images() -> None:
    shown = show("pagemap-1.img", pagemap(7, extent(0x7F0000000000, 3)))
    assert entries_of(shown) == [
        {"pages_id": 7},
        {"vaddr": "0x7f0000000000", "compat_nr_pages": 3, "flags": 4},
    ]
    shown = show("mm-1.img", mm(vma(0x1000, 0x2000), vma(0x3000, 0x4000), auxv=(6, 4096)))
    (entry,) = entries_of(shown)
    assert [mapping["start"] for mapping in entry["vmas"]] == ["0x1000", "0x3000"]
    assert (entry["mm_brk"], entry["mm_saved_auxv"]) == ("0x0", [6, 4096])


def test_payloads_are_measured() -> None:
    data = image("pipes-data", payload_pb2.PipeData(pipe_id=1, bytes=5)) + b"hello"
    digest = hashlib.sha256(b"hello").hexdigest()
    shown = show("pipes-data.img", data)
    assert entries_of(shown) == [{"pipe_id": 1, "bytes": 5, "payload": {"size": 5, "sha256": digest}}]


def test_raw_images_are_measured(tmp_path: Path) -> None:
    for name, data in (("pages-1.img", bytes(9000)), ("iptables-9.img", b"")):
        (tmp_path / name).write_bytes(data)
        measured = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        assert show_file(tmp_path / name) == {"image": name, "raw": measured}


def test_what_is_no_image_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "files.img").write_bytes(b"#!/bin/sh")
    with pytest.raises(ImageError, match="begins with 23 21 2f"):
        show_file(tmp_path / "files.img")
    monkeypatch.setattr(show_module, "SHOW_LIMIT", 8)
    with pytest.raises(ImageError, match="9 bytes is too big"):
        show_file(tmp_path / "files.img")


@given(st.sampled_from(sorted(BY_NAME)), st.binary(max_size=80))
def test_garbage_is_shown_or_an_image_error(kind: str, body: bytes) -> None:
    data = word(COMMON_MAGIC) + word(BY_NAME[kind].magic) + frame(body)
    try:
        shown = show("garbage.img", data)
    except ImageError:
        return
    assert isinstance(shown, dict)
    assert shown["kind"] == kind


def test_an_enumerator_of_a_newer_criu() -> None:
    entry = task_pb2.FdinfoEntry(id=1, flags=0, fd=3)
    shown = show("fdinfo-2.img", image("fdinfo", entry.SerializePartialToString() + b"\x18\x63"))
    assert entries_of(shown) == [{"id": 1, "flags": 0, "fd": 3, "3": "0x63"}]


def test_groups_are_refused() -> None:
    with pytest.raises(ImageError, match="a form that CRIU never writes"):
        show("timens-0.img", image("timens", b"\xa3\x06\xa4\x06"))
