"""What two nodes must have in common, what a peer may say of itself, and what an images directory must be."""

import os
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgpack
import pytest

from imgnode import preflight
from imgnode.criu import Criu
from imgnode.preflight import (
    NodeFacts,
    check_images_dir,
    has_room_for_rounds,
    machine_problems,
    problems,
    restores_with_old_criu,
)
from imgnode.unix import listening
from imgwire.errors import RemoteProtocolError, UsageError

MIB = 2**20
DEEPEST = f"{'x' * 29}/streamer-serve.sock"

NODE = NodeFacts(
    arch="x86_64",
    kernel="6.12.0",
    page_size=4096,
    criu="4.1.1",
    criu_reason="",
    cpu_vendor="AuthenticAMD",
    cpu_features=("avx2", "sse2"),
    free_memory=1024 * MIB,
    free_spool=None,
    image_memory=None,
    releases_as_read=False,
    restore_allowed=True,
    uid=0,
)


@pytest.mark.t0
def test_no_problems() -> None:
    more = replace(NODE, cpu_features=("avx2", "avx512f", "sse2"), kernel="6.18", cpu_vendor="GenuineIntel")
    assert problems(NODE, more, 512 * MIB) == []


@pytest.mark.t0
@pytest.mark.parametrize(
    ("destination", "need", "expected"),
    [
        ({"criu": None, "criu_reason": "no such program"}, 1, "destination: no usable CRIU (no such program)"),
        ({"criu": "3.14"}, 1, "destination: CRIU 3.14 has no --stream"),
        ({"arch": "aarch64"}, 1, "destination: it is aarch64, the source x86_64"),
        ({"page_size": 65536}, 1, "destination: its pages have 65536 bytes"),
        ({"cpu_features": ("sse2",)}, 1, "destination: its CPU lacks avx2"),
        ({}, 1024 * MIB + 1, "destination: 1024 MiB of memory are free and the process needs 1025"),
        ({"free_spool": 2048 * MIB}, 1025 * MIB, "destination: 1024 MiB of memory are free"),
        ({}, 512 * MIB + 1, "destination: beside the process, 512 MiB of memory and spool are free"),
        ({"free_spool": 512 * MIB}, 769 * MIB, "destination: beside the process, 767 MiB of memory and spool are free"),
        (
            {"image_memory": 2 * MIB},
            3 * MIB,
            "destination: its cache's memory limit and spool leave 2 MiB and the images",
        ),
        (
            {"image_memory": 2 * MIB, "free_spool": MIB},
            4 * MIB,
            "destination: its cache's memory limit and spool leave 3",
        ),
        (
            {"image_memory": 2 * MIB, "releases_as_read": True},
            3 * MIB,
            "destination: its cache's memory limit and spool leave 2 MiB",
        ),
        ({"restore_allowed": False}, 1, "destination: its cache runs no restores for others"),
    ],
)
def test_one_problem(destination: dict[str, object], need: int, expected: str) -> None:
    other = NodeFacts.from_dict({**NODE.to_dict(), **destination})
    found = problems(NODE, other, need)
    assert len(found) == 1
    assert found[0].startswith(expected)
    assert ": " in found[0][len("destination: ") :]


@pytest.mark.t0
def test_several_problems_at_once() -> None:
    source = replace(NODE, criu=None, criu_reason="gone")
    other = replace(NODE, arch="riscv64", restore_allowed=False, criu="3.9")
    assert len(problems(source, other, 2048 * MIB)) == 5


@pytest.mark.t0
@pytest.mark.parametrize(
    ("arch", "there", "pages", "reason"),
    [
        ("", "x86_64", 4096, None),
        ("aarch64", "aarch64", 4096, None),
        ("", "aarch64", 4096, "destination: it is aarch64, the source x86_64: choose a node of the same kind, or"),
        ("aarch64", "x86_64", 4096, "destination: it is x86_64, as the source is: leave --arch out"),
        ("aarch64", "riscv64", 4096, "destination: it is riscv64, not aarch64, which --arch names"),
        ("aarch64", "aarch64", 65536, "destination: its pages have 65536 bytes, the source's 4096"),
    ],
)
def test_change_of_isa(arch: str, there: str, pages: int, reason: str | None) -> None:
    """The CPU's features are nobody's business then."""
    found = machine_problems(NODE, replace(NODE, arch=there, page_size=pages, cpu_features=("other",)), arch)
    found = [line for line in found if "its CPU lacks" not in line]
    assert len(found) == (reason is not None)
    assert not reason or found[0].startswith(reason)


@pytest.mark.t0
def test_change_of_isa_with_large_pages() -> None:
    node = replace(NODE, page_size=65536)
    (found,) = machine_problems(node, replace(node, arch="aarch64"), "aarch64")
    assert found.startswith("source: its pages have 65536 bytes")


@pytest.mark.t0
@pytest.mark.parametrize(("criu", "old"), [("4.1.1", True), ("4.2", False), ("4.2.1", False), (None, False)])
def test_who_restores_with_an_old_criu(criu: str | None, old: bool) -> None:
    assert restores_with_old_criu(replace(NODE, criu=criu)) is old


@pytest.mark.t0
def test_unchecked_cpu() -> None:
    assert problems(NODE, replace(NODE, cpu_features=None), 1) == []
    assert problems(replace(NODE, cpu_features=None), replace(NODE, cpu_features=()), 1) == []


@pytest.mark.t0
def test_images_need_no_room_of_their_own_with_a_spool_or_when_they_go_as_they_are_read() -> None:
    assert problems(NODE, replace(NODE, free_spool=1024 * MIB), 1024 * MIB) == []
    assert problems(NODE, replace(NODE, releases_as_read=True), 1024 * MIB) == []


@pytest.mark.t0
def test_images_may_fill_the_limit_and_the_spool() -> None:
    assert problems(NODE, replace(NODE, image_memory=3 * MIB), 3 * MIB) == []
    assert problems(NODE, replace(NODE, image_memory=0, free_spool=3 * MIB), 3 * MIB) == []


@pytest.mark.t0
def test_permission_to_restore_is_not_needed_by_those_who_restore_themselves() -> None:
    assert problems(NODE, replace(NODE, restore_allowed=False), MIB, need_restore=False) == []


@pytest.mark.t0
@pytest.mark.parametrize("node", [NODE, replace(NODE, criu=None, cpu_features=None, free_spool=5)])
def test_over_the_wire(node: NodeFacts) -> None:
    sent = msgpack.unpackb(msgpack.packb(node.to_dict()))
    assert NodeFacts.from_dict({**sent, "from_a_later_release": 1}) == node


@pytest.mark.t0
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("arch", 5),
        ("arch", "x\x1b[2J"),
        ("kernel", "6" * 5000),
        ("page_size", -1),
        ("page_size", True),
        ("page_size", "4096"),
        ("criu", "new"),
        ("criu", "4." + "9" * 5000),
        ("criu_reason", None),
        ("cpu_features", "avx2"),
        ("cpu_features", [1]),
        ("cpu_features", ["f"] * 2001),
        ("free_memory", None),
        ("free_memory", 2**64),
        ("free_spool", 1.5),
        ("image_memory", -1),
        ("restore_allowed", 1),
        ("uid", []),
    ],
)
def test_a_peer_that_says_nonsense(name: str, value: object) -> None:
    facts = NODE.to_dict()
    with pytest.raises(RemoteProtocolError, match=name):
        NodeFacts.from_dict({**facts, name: value})
    del facts[name]
    with pytest.raises(RemoteProtocolError, match=name):
        NodeFacts.from_dict(facts)


@pytest.mark.t0
def test_cpu_facts() -> None:
    x86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu sse2 avx2 ibrs\n\nprocessor\t: 1\nflags\t\t: x\n"
    assert preflight.cpu_facts(x86) == ("GenuineIntel", ("avx2", "sse2"))
    arm = "processor\t: 0\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\n"
    assert preflight.cpu_facts(arm) == ("0x41", ("asimd", "fp"))
    assert preflight.cpu_facts("") == ("", ())


@pytest.mark.t1
async def test_gather(tmp_path: Path) -> None:
    program = tmp_path / "criu"
    program.write_text("#!/bin/sh\necho Version: 4.2\n")
    program.chmod(0o755)
    facts = await preflight.gather(Criu(program), tmp_path, restore_allowed=True)
    assert (facts.criu, facts.criu_reason, facts.uid) == ("4.2", "", os.geteuid())
    assert (facts.arch, facts.kernel) == (platform.machine(), platform.release())
    assert facts.free_memory > MIB
    assert facts.free_spool is not None
    assert facts.cpu_features
    assert NodeFacts.from_dict(facts.to_dict()) == facts
    assert problems(facts, facts, MIB) == []


@pytest.mark.t1
async def test_gather_without_criu_or_spool(tmp_path: Path) -> None:
    facts = await preflight.gather(Criu(tmp_path / "none"), None, restore_allowed=False, check_cpu=False)
    assert facts.criu is None
    assert "no such program" in facts.criu_reason
    assert (facts.free_spool, facts.cpu_features) == (None, None)
    with pytest.raises(FileNotFoundError):
        await preflight.gather(Criu(tmp_path / "none"), tmp_path / "no-spool", restore_allowed=False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir(mode=0o700)
    return path


@pytest.mark.t1
def test_a_good_images_dir(images: Path) -> None:
    check_images_dir(images)
    assert list(images.iterdir()) == []


@pytest.mark.t1
def test_no_images_dir(images: Path) -> None:
    with pytest.raises(UsageError, match="none: No such file"):
        check_images_dir(images / "none")
    (images / "file").write_text("")
    with pytest.raises(UsageError, match="file: it is no directory"):
        check_images_dir(images / "file")


@pytest.mark.t1
def test_images_dir_with_parent(images: Path) -> None:
    (images / "parent").symlink_to("../nowhere")
    with pytest.raises(UsageError, match="`parent`"):
        check_images_dir(images)


@pytest.mark.t1
@pytest.mark.parametrize("mode", [0o770, 0o702])
def test_images_dir_that_others_may_write(images: Path, mode: int) -> None:
    images.chmod(mode)
    with pytest.raises(UsageError, match="others may write"):
        check_images_dir(images)


@pytest.mark.t1
def test_images_dir_of_somebody_else(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(UsageError, match="it belongs to uid"):
        check_images_dir(images)


@pytest.fixture
def as_plain_user() -> Iterator[Path]:
    """The test runs without root's powers, and gets a directory of its own."""
    with tempfile.TemporaryDirectory() as directory:
        uid = os.geteuid()
        if uid == 0:
            os.chown(directory, 65534, -1)
            os.seteuid(65534)
        yield Path(directory)
        os.seteuid(uid)


@pytest.mark.t1
def test_images_dir_that_cannot_be_written(as_plain_user: Path) -> None:
    check_images_dir(as_plain_user)
    as_plain_user.chmod(0o500)
    with pytest.raises(UsageError, match="it cannot be written to"):
        check_images_dir(as_plain_user)


@pytest.mark.t1
@pytest.mark.parametrize(("sessions", "longest"), [(False, "streamer-capture.sock"), (True, DEEPEST)])
async def test_images_dir_with_a_long_path(node_dir: Path, sessions: bool, longest: str) -> None:
    """The longest that passes has room for the longest socket."""
    most = 107 - 1 - len(longest)
    fits = node_dir / ("x" * (most - len(str(node_dir)) - 1))
    fits.mkdir(mode=0o700)
    check_images_dir(fits, sessions=sessions)
    (fits / longest).parent.mkdir(exist_ok=True)
    async with listening(fits / longest):
        assert (fits / longest).is_socket()
    long = fits.with_name(fits.name + "x")
    long.mkdir(mode=0o700)
    with pytest.raises(UsageError, match=f"{long}: its path has {most + 1} bytes, .*: name one with at most {most}$"):
        check_images_dir(long, sessions=sessions)


@pytest.mark.t0
@pytest.mark.parametrize(
    ("free", "limit", "spool", "fits"),
    [
        (200, None, None, True),
        (199, None, None, False),
        (150, None, 50, True),
        (999, 199, None, False),
        (999, 9, 191, True),
    ],
)
def test_rounds_need_room_for_two_checkpoints(free: int, limit: int | None, spool: int | None, fits: bool) -> None:
    there = replace(NODE, free_memory=free, image_memory=limit, free_spool=spool)
    assert has_room_for_rounds(there, 100) is fits
