"""Images of a real CRIU: decoded, read, changed and restored."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.transform.conftest import PAGE, PRIVATE, SHARED, Furnished
from transform.chain import Chain, EndOfDump
from transform.directory_store import DirectoryStore
from transform.errors import AddressError
from transform.identity import Identity
from transform.images.codec import decode
from transform.images.kinds import is_raw
from transform.images.proto import files_pb2, memory_pb2, task_pb2
from transform.memory import Memory
from transform.offline import transform_directory
from transform.options import transforms

pytestmark = pytest.mark.t2

Furnish = Callable[..., Furnished]


@pytest.fixture
def dumped(furnish: Furnish, criu: Path) -> Furnished:
    process = furnish(criu)
    process.dump()
    return process


class WholeMemory:
    """Hands the end of the dump to a test."""

    name = "test"
    needs_memory = True
    warnings = ()
    dump: EndOfDump

    def wants(self, image: str) -> bool:
        del image
        return False

    def transform(self, image: str, data: bytes) -> bytes:
        raise AssertionError(f"{image} of {len(data)} bytes was not wanted")

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        self.dump = dump
        return {}


def memory_of(images: Path, pid: int) -> Memory:
    whole = WholeMemory()
    chain = Chain([whole])
    for path in sorted(images.iterdir()):
        if chain.wants(path.name):
            assert chain.transform(path.name, path.read_bytes()) == path.read_bytes()
    assert chain.finish(DirectoryStore(images)) == {}
    assert pid in whole.dump.pids()
    return whole.dump.memory(pid)


def test_every_image_survives_decoding_and_encoding(dumped: Furnished) -> None:
    known = set()
    for path in dumped.images.glob("*.img"):
        decoded = decode(path.name, path.read_bytes())
        assert decoded.encode() == path.read_bytes()
        assert decoded.kind is not None or is_raw(path.name), f"{path.name} is of no kind that we know"
        known.add(decoded.kind.name if decoded.kind else "raw")
    assert {"inventory", "pstree", "core", "mm", "pagemap", "files", "fdinfo", "fs", "ids", "raw"} <= known
    assert {"pipes-data", "sk-queues", "ghost-file", "remap-fpath"} <= known


def test_typed_fields_are_what_the_process_is(dumped: Furnished) -> None:
    def read(name: str) -> bytes:
        return (dumped.images / name).read_bytes()

    tree = decode("pstree.img", read("pstree.img")).messages(task_pb2.PstreeEntry)
    assert [len(entry.threads) for entry in tree] == [2, 1]
    assert (tree[0].pid, tree[1].ppid) == (dumped.pid, dumped.pid)
    core = decode("core.img", read(f"core-{dumped.pid}.img")).messages(task_pb2.Core)[0]
    assert core.tc.comm == b"furnished"
    mm = decode("mm.img", read(f"mm-{dumped.pid}.img")).messages(memory_pb2.Mm)[0]
    registers = core.thread_info.gpregs
    assert any(vma.start <= registers.sp < vma.end for vma in mm.vmas)
    files = decode("files.img", read("files.img")).messages(files_pb2.File)
    paths = {file.id: file.reg.name.decode() for file in files if file.type == task_pb2.REG}
    assert paths[mm.exe_file_id] == f"{dumped.home}/furnished"
    fs = decode("fs.img", read(f"fs-{dumped.pid}.img")).messages(task_pb2.Fs)[0]
    assert paths[fs.cwd_id] == str(dumped.home)
    sockets = {file.usk.name for file in files if file.type == task_pb2.UNIXSK}
    assert f"{dumped.home}/name.sock\0".encode() in sockets


def test_memory_reads_what_the_process_wrote(dumped: Furnished) -> None:
    memory = memory_of(dumped.images, dumped.pid)
    expected = b"end of the first" + bytes(PAGE) + b"start of a third"
    assert memory.read(PRIVATE + PAGE - 16, PAGE + 32) == expected
    assert memory.read(SHARED + 3 * PAGE + 100, 16) == b"seen by both two"
    assert memory.read(SHARED, 8) == bytes(8)
    arguments = memory.read(memory.mm.mm_arg_start, memory.mm.mm_arg_end - memory.mm.mm_arg_start)
    assert arguments == f"{dumped.home}/furnished\0".encode()
    with pytest.raises(AddressError, match="not mapped"):
        memory.read(PRIVATE + 2 * PAGE, PAGE + 1)
    unmodified = 0
    for vma in memory.mm.vmas:
        try:
            assert len(memory.read(vma.start, PAGE)) == PAGE
        except AddressError as error:
            unmodified += error.reason.startswith("an unmodified page of a mapped file")
    assert unmodified, "the C library's text is in the dump"


def test_memory_written_is_seen_by_the_restored_process(dumped: Furnished) -> None:
    memory = memory_of(dumped.images, dumped.pid)
    memory.write(PRIVATE + PAGE - 16, b"END OF THE FIRST")
    memory.write(PRIVATE + 2 * PAGE, b"START")
    memory.write(SHARED + 3 * PAGE + 100, b"SEEN")
    with pytest.raises(AddressError, match="never touched"):
        memory.write(PRIVATE + PAGE - 1, b"ab")
    dumped.restore(dumped.images)
    report = dumped.report(dumped.home)
    assert report["private"] == "END OF THE FIRST|START of a third"
    assert report["shared"] == "SEEN by both two"


def test_identity_restores(dumped: Furnished, node_dir: Path) -> None:
    transform_directory(dumped.images, node_dir / "out", Chain([Identity()]))
    for path in dumped.images.iterdir():
        assert (node_dir / "out" / path.name).read_bytes() == path.read_bytes()
    dumped.restore(node_dir / "out")
    assert dumped.report(dumped.home)["private"] == "end of the first|start of a third"


def test_a_process_restores_at_its_new_path(dumped: Furnished, node_dir: Path) -> None:
    new, out = node_dir / "a longer name of new", node_dir / "out"
    transform_directory(dumped.images, out, Chain(transforms(map_path=[f"{dumped.home}:{new}"])))
    dumped.home.rename(new)
    dumped.restore(out)
    report = dumped.report(new)
    assert report["exe"] == f"{new}/furnished"
    assert report["cwd"] == str(new)
    assert report["data"] == f"{new}/data.txt"
    assert report["socket"] == f"{new}/name.sock"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def test_a_listener_moves_and_its_connection_stays(furnish: Furnish, criu_latest: Path, node_dir: Path) -> None:
    old, new = free_port(), free_port()
    process = furnish(criu_latest, str(old), options=("--tcp-established", "--network-lock", "skip"))
    process.dump()
    transform_directory(process.images, node_dir / "out", Chain(transforms(tcp_listen_remap=[f"{old}:{new}"])))
    process.restore(node_dir / "out")
    report = process.report(process.home)
    assert report["listens"] == str(new)
    assert report["accepted"] == str(old)
    assert report["connection"] == "echo"
