"""A whole dump of one task: to the other ISA, and back again."""

import struct
from collections.abc import Container
from pathlib import Path

import pytest

from tests.transform.isa.pairs import TEXT, pair
from tests.transform.synthetic import BytesStore, extent, image, mm, pagemap, regular, vma
from transform.chain import Chain
from transform.errors import OptionError, TransformError
from transform.images.codec import decode
from transform.images.proto import files_pb2, memory_pb2, task_pb2
from transform.isa import aarch64, x86_64
from transform.isa.change import TASK_ALIVE, TASK_DEAD, TASK_STOPPED, ChangeOfIsa
from transform.isa.pair import Pair
from transform.isa.thread import Place, Thread

pytestmark = pytest.mark.t0

PAGE, STACK, VDSO = 4096, 0x7FFE0000, 0x7FAB0000
READ_ONLY_FILE, VDSO_STATUS, VVAR_STATUS, VSYSCALL = 0x41, 0x209, 0x1201, 0x204
O_LARGEFILE, O_LARGEFILE_ARM = 0x8000, 0x20000


def core(thread: Thread, isa: str = "x86-64", state: int = TASK_STOPPED) -> bytes:
    made = task_pb2.Core()
    pairs = pair()
    if isa == "x86-64":
        x86_64.write_thread(made, thread, pairs.source)
    else:
        aarch64.write_thread(made, thread, pairs.target)
    made.tc.CopyFrom(
        task_pb2.TaskCore(task_state=state, exit_code=0, personality=0, flags=0, blk_sigset=0, comm=b"prog")
    )
    return image("core", made)


def dump(**changed: bytes) -> dict[str, bytes]:
    """A task with two frames, a vDSO, and a page of its code that a debugger or CRIU has written to."""
    opened = regular(2, b"/dev/null")
    opened.reg.flags = O_LARGEFILE | 1
    program = regular(1, b"/opt/prog")
    program.reg.size = pair().source.size
    thread = Thread(Place.AFTER_CALL, 3, STACK + 0x40, STACK + 0x10, 0x9000, 0x9100, result=7)
    images = {
        "core-5.img": core(thread),
        "files.img": image("files", program, opened),
        "mm-5.img": mm(
            vma(TEXT, TEXT + PAGE, READ_ONLY_FILE, shmid=1, prot=5, fdflags=O_LARGEFILE),
            vma(VDSO - PAGE, VDSO, VVAR_STATUS, prot=1),
            vma(VDSO, VDSO + PAGE, VDSO_STATUS, prot=5),
            vma(STACK, STACK + PAGE),
            vma(0xFFFFFFFFFF600000, 0xFFFFFFFFFF601000, VSYSCALL, prot=4),
            auxv=(33, VDSO, 6, PAGE, 25, 1234, 16, 99),
        ),
        "pagemap-5.img": pagemap(1, extent(TEXT, 1), extent(VDSO, 1), extent(STACK, 1)),
        "pstree.img": image("pstree", task_pb2.PstreeEntry(pid=5, ppid=0, pgid=5, sid=5, threads=[5])),
    }
    return images | {name.replace("_", "-") + ".img": data for name, data in changed.items()}


def pages() -> BytesStore:
    stack = bytearray(PAGE)
    source = pair().source
    struct.pack_into("<QQ", stack, 0x40, STACK + 0x80, source.by_id[8].address)
    struct.pack_into("<QQ", stack, 0x80, 0, source.by_id[9].address)
    return BytesStore(pages_1=b"\xcc" * PAGE + b"v" * PAGE + bytes(stack))


@pytest.fixture
def change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChangeOfIsa:
    return changing("aarch64", tmp_path, monkeypatch)


def changing(
    target: str, directory: Path, monkeypatch: pytest.MonkeyPatch, resumed: Container[int] = ()
) -> ChangeOfIsa:
    (directory / "bin").mkdir(exist_ok=True)
    monkeypatch.setattr(Pair, "read", lambda _directory, _name, source, target: pair(source, target))
    return ChangeOfIsa(target, directory, resumed)


def run(transform: ChangeOfIsa, images: dict[str, bytes], store: BytesStore) -> dict[str, bytes]:
    chain = Chain([transform])
    sent = {name: chain.transform(name, data) for name, data in images.items() if chain.wants(name)}
    passed = {name: data for name, data in sent.items() if data is not None}
    return {**images, **passed, **chain.finish(store)}


def test_what_is_read_beforehand_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is no pair is no error, unless a dump needs it."""
    (tmp_path / "bin").mkdir()
    for name in ("prog", "other"):
        (tmp_path / f"bin/{name}_x86-64").write_bytes(b"no executable")
    asked = []

    def read(_directory: Path, name: str, source: str, target: str) -> Pair:
        asked.append(name)
        if name == "other":
            raise OptionError("no pair")
        return pair(source, target)

    monkeypatch.setattr(Pair, "read", read)
    one = ChangeOfIsa("aarch64", tmp_path)
    one.read_programs()
    assert asked == ["other", "prog"]
    made = run(one, dump(), pages())
    assert decode("core-5.img", made["core-5.img"]).messages(task_pb2.Core)[0].HasField("ti_aarch64")
    assert asked == ["other", "prog"]


def test_everything_of_one_isa_becomes_the_others(change: ChangeOfIsa) -> None:
    store = pages()
    made = run(change, dump(), store)
    (task,) = decode("core-5.img", made["core-5.img"]).messages(task_pb2.Core)
    target = pair().target
    assert task.mtype == task_pb2.Core.AARCH64 and not task.HasField("thread_info")
    registers = task.ti_aarch64.gpregs
    assert (registers.pc, registers.sp, registers.regs[29]) == (target.by_id[3].address, STACK + 0x10, STACK + 0x40)
    assert (registers.regs[0], task.ti_aarch64.tls, task.ti_aarch64.clear_tid_addr) == (7, 0x9000, 0x9100)
    assert task.tc.task_state == TASK_STOPPED
    (space,) = decode("mm-5.img", made["mm-5.img"]).messages(memory_pb2.Mm)
    assert [(one.start, one.status, one.prot) for one in space.vmas] == [
        (TEXT, READ_ONLY_FILE, 5),
        (VDSO, 0x201, 0),
        (STACK, 0x201, 3),
    ]
    assert space.vmas[0].fdflags == O_LARGEFILE_ARM
    assert list(space.mm_saved_auxv) == [6, PAGE, 25, 1234]
    program, opened = decode("files.img", made["files.img"]).messages(files_pb2.File)
    assert (program.reg.size, opened.reg.flags) == (target.size, O_LARGEFILE_ARM | 1)
    data = bytes(store.images["pages-1.img"])
    assert data[:PAGE] == target.bytes_at(TEXT, PAGE), "code is the other executable's"
    assert data[PAGE : 2 * PAGE] == bytes(PAGE)
    returns = [struct.unpack_from("<Q", data, 2 * PAGE + at + 8)[0] for at in (0x40, 0x80)]
    assert returns == [target.by_id[8].address, target.by_id[9].address]


def test_there_and_back_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, images = pages(), dump()
    there = run(changing("aarch64", tmp_path, monkeypatch), images, store)
    back = run(changing("x86-64", tmp_path, monkeypatch), there, store)
    assert bytes(store.images["pages-1.img"])[2 * PAGE :] == bytes(pages().images["pages-1.img"])[2 * PAGE :]
    assert back["files.img"] == images["files.img"]
    assert back["core-5.img"] == images["core-5.img"]


def test_what_the_monitor_stopped_runs_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = run(changing("aarch64", tmp_path, monkeypatch, resumed={5}), dump(), pages())
    (task,) = decode("core-5.img", made["core-5.img"]).messages(task_pb2.Core)
    assert task.tc.task_state == TASK_ALIVE


def test_a_process_that_has_ended_changes_its_machine_only(change: ChangeOfIsa) -> None:
    """Its parent has not asked for it yet: it has no memory and no threads, and pstree.img names none."""
    ended = task_pb2.Core(mtype=task_pb2.Core.X86_64)
    ended.tc.CopyFrom(
        task_pb2.TaskCore(task_state=TASK_DEAD, exit_code=7, personality=0, flags=0, blk_sigset=0, comm=b"prog")
    )
    tree = [task_pb2.PstreeEntry(pid=5, ppid=0, pgid=5, sid=5, threads=[5])]
    tree.append(task_pb2.PstreeEntry(pid=6, ppid=5, pgid=5, sid=5))
    made = run(change, dump(core_6=image("core", ended), pstree=image("pstree", *tree)), pages())
    (core,) = decode("core-6.img", made["core-6.img"]).messages(task_pb2.Core)
    assert (core.mtype, core.tc) == (task_pb2.Core.AARCH64, ended.tc)


def test_what_lies_above_the_addresses_of_x86_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own mappings on aarch64, at the end of the pagemap."""
    high = 0xFFFF80000000
    thread = Thread(Place.AFTER_CALL, 3, 0, STACK + 0x10, 0x9000, 0x9100)
    images = dump(
        core_5=core(thread, "aarch64"),
        mm_5=mm(
            vma(TEXT, TEXT + PAGE, READ_ONLY_FILE, shmid=1, prot=5),
            vma(STACK, STACK + PAGE),
            vma(high, high + PAGE, VDSO_STATUS),
        ),
        pagemap_5=pagemap(1, extent(STACK, 1), extent(high, 1)),
    )
    made = run(changing("x86-64", tmp_path, monkeypatch), images, BytesStore(pages_1=bytes(2 * PAGE)))
    (space,) = decode("mm-5.img", made["mm-5.img"]).messages(memory_pb2.Mm)
    assert [one.start for one in space.vmas] == [TEXT, STACK]
    entries = decode("pagemap-5.img", made["pagemap-5.img"]).messages(memory_pb2.PagemapEntry)
    assert [one.vaddr for one in entries] == [STACK]


def test_a_dump_of_the_targets_isa_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TransformError, match=r"core-5\.img: is of x86-64, not aarch64"):
        run(changing("x86-64", tmp_path, monkeypatch), dump(), pages())


def test_another_executable_is_refused(change: ChangeOfIsa) -> None:
    program = regular(1, b"/opt/prog")
    with pytest.raises(TransformError, match="/opt/prog: has 77 bytes in the dump, but prog_x86-64 has"):
        run(change, dump(files=image("files", program)), pages())


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--arch vax: not known; give x86-64 or aarch64"):
        ChangeOfIsa("vax", tmp_path)
    with pytest.raises(OptionError, match="has no directory bin"):
        ChangeOfIsa("aarch64", tmp_path)
    (tmp_path / "bin").mkdir()
    with pytest.raises(OptionError, match="prog_x86-64: No such file"):
        Pair.read(tmp_path, "prog", "x86-64", "aarch64")


def test_a_task_in_the_memory_of_another_is_refused(change: ChangeOfIsa) -> None:
    images = dump()
    del images["mm-5.img"]
    with pytest.raises(TransformError, match="task 5: has no memory of its own"):
        run(change, images, pages())
