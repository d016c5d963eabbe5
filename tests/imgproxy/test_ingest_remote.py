"""`criu pre-dump --remote` and `criu dump --remote` at the proxy, with a fake CRIU of both variants.

In most tests the CRIU is this process; where it must die, be another one or be seen to dump a tree, it is a process of
its own.
"""

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.lowlevel import FdStream

from imgnode.nursery import flat_nursery
from imgnode.unix import listening
from imgproxy.compression import Compression
from imgproxy.ingest import remote_run
from imgproxy.ingest.remote import RemoteIngest
from imgproxy.page_pump import SentImage
from imgproxy.sender import ImageSender
from imgwire.messages import BeginRound, DropRound, EndImage, OpenImage
from tests.fake_remote_criu import PROXY, RemoteCriu, body, command, entry, hung_up
from tests.playbook import MemoryOutgoing, random_bytes
from transform.chain import Chain, EndOfDump

pytestmark = pytest.mark.t1

VARIANTS = pytest.mark.parametrize("variant", ["pipe", "nopipe"])
PAGES = random_bytes(3_000_000)
Images = dict[str, bytes]

#: What a pre-dump writes, which is a process of its own, and its sizes.
PRE_DUMP_SIZES = {"pagemap-7.img": 100, "pages-1.img": 3_000_000, "inventory.img": 50}
PRE_DUMP: Images = {name: body(name, size) for name, size in PRE_DUMP_SIZES.items()}
DUMP: Images = {
    "seccomp.img": b"s",
    "pagemap-7.img": b"M" * 200,
    "pages-1.img": PAGES[::-1],
    "core-7.img": b"c" * 5000,
    "files.img": b"",
    "inventory.img": b"I",
}


class Rounds(MemoryOutgoing):
    """Keeps images apart by their round."""

    @property
    def rounds(self) -> list[tuple[str, Images]]:
        """Those that were not dropped: id and images that have ended."""
        begun: dict[int, tuple[str, Images]] = {}
        names: dict[int, tuple[int, str]] = {}
        for message in self.messages:
            match message:
                case BeginRound(number, snapshot):
                    begun[number] = (snapshot, {})
                case DropRound(number):
                    del begun[number]
                case OpenImage(image, name, _, number):
                    names[image] = (number, name)
                case EndImage(image):
                    number, name = names[image]
                    begun[number][1][name] = self._images.get(image, b"")
        return list(begun.values())

    async def read_back(self, image: SentImage, offset: int, length: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._images[image.number][offset : offset + length]


class Capture:
    """An ingest that waits for `criu --remote` on a socket."""

    def __init__(self, directory: Path, *, insists: bool = False, chain: Chain | None = None) -> None:
        self.directory = directory
        self.out = Rounds()
        self.announced: set[int] = set()
        self.sender = ImageSender(self.out, Chain([]), Compression("off"))
        self.ingest = RemoteIngest(
            self.sender, lambda: chain or Chain([]), self.out.read_back, self._change, insists=insists
        )
        self.ended = trio.Event()
        self._changed = trio.Condition()
        self._nursery: trio.Nursery | None = None

    def criu(self, snapshot: str, variant: str = "pipe") -> RemoteCriu:
        return RemoteCriu(PROXY, self.directory, snapshot, variant)

    def _change(self) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._tell)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def until_complete(self) -> None:
        async with self._changed:
            while not self.ingest.complete:
                await self._changed.wait()

    async def run(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        try:
            await self.ingest.accept(listener, self.announced.__contains__)
        finally:
            self._nursery = None
            self.ended.set()

    async def process(self, verb: str, snapshot: str, *steps: str, options: tuple[object, ...] = ()) -> trio.Process:
        """A CRIU of its own, which has come to its step `hold`."""
        words = command(verb, self.directory, snapshot, *steps, options=options)
        process = await trio.lowlevel.open_process(words, stdin=-1, stdout=-1)
        await says(process, "holds")
        return process


async def says(process: trio.Process, wanted: str) -> str:
    """Read what a process says until this comes."""
    assert process.stdout is not None
    told = b""
    while wanted.encode() not in told:
        part = await process.stdout.receive_some(1000)
        assert part, f"it ended without {wanted!r}: {told!r}"
        told += part
    return told.decode()


async def go_on(process: trio.Process) -> None:
    assert process.stdin is not None
    await process.stdin.send_all(b"\n")


def run_at_once(words: list[str]) -> None:
    """Run a CRIU to its end before anybody in this process hears of it."""
    subprocess.run(words, check=True)


def end_at_once(process: trio.Process) -> None:
    """Let it go on to its end, before anybody in this process hears of it."""
    assert isinstance(process.stdin, FdStream)
    os.write(process.stdin.fileno(), b"\n")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)


async def bury(process: trio.Process, *, kill: bool = True) -> None:
    """See its end, forced or not."""
    if kill:
        process.kill()
    code = await process.wait()
    assert code == (-signal.SIGKILL if kill else 0)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        await pipe.aclose()


@asynccontextmanager
async def capturing(directory: Path, *, insists: bool = False, chain: Chain | None = None) -> AsyncIterator[Capture]:
    """What the ingest raises comes out here; it must have ended when the block does."""
    capture = Capture(directory, insists=insists, chain=chain)
    with trio.fail_after(20):
        async with listening(directory / PROXY) as listener, flat_nursery() as nursery:
            nursery.start_soon(capture.run, listener, nursery)
            yield capture


async def pre_dump(capture: Capture, snapshot: str, variant: str = "pipe") -> None:
    """A whole pre-dump."""
    steps = ["push", "ids", *(f"image:{name}:{size}" for name, size in PRE_DUMP_SIZES.items())]
    words = command("predump", capture.directory, snapshot, *steps, options=variant_option(variant))
    done = await trio.run_process(words, capture_stdout=True)
    assert done.stdout.decode().split() == ["ids", snapshot], "only the last: it would look for a parent, and fail"


def variant_option(variant: str) -> tuple[str, ...]:
    return ("--nopipe",) if variant == "nopipe" else ()


async def run(criu: RemoteCriu, images: Images) -> None:
    """A dump from its push to its last image."""
    await criu.push()
    assert await criu.ids() == [criu.snapshot]
    for name, data in images.items():
        await criu.image(name, data)


@VARIANTS
async def test_two_pre_dumps_and_a_dump(node_dir: Path, variant: str) -> None:
    async with capturing(node_dir) as capture:
        for snapshot in ("s0", "s1"):
            await pre_dump(capture, snapshot, variant)
            await capture.until_complete()
            assert capture.ingest.started_at is None, "nothing is frozen yet"
        criu = capture.criu("s2", variant)
        await run(criu, DUMP)
        await criu.finish()
        await capture.ended.wait()
    assert capture.out.rounds == [("s0", PRE_DUMP), ("s1", PRE_DUMP), ("s2", DUMP)]
    assert capture.ingest.complete and capture.ingest.ended_well
    assert capture.ingest.variant == variant
    assert capture.ingest.criu == os.getpid() and capture.ingest.started_at is not None


@VARIANTS
async def test_eight_images_at_once_end_in_any_order(node_dir: Path, variant: str) -> None:
    names = [f"pages-{number}.img" for number in range(7)] + ["inventory.img"]
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1", variant)
        await criu.push()
        await criu.image("core-7.img", b"c")
        streams = [await criu.open(name) for name in names]
        async with trio.open_nursery() as nursery:
            for number, stream in enumerate(streams):
                nursery.start_soon(stream.send_all, PAGES[number:])
        for stream in reversed(streams[1:]):
            await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert not capture.ingest.complete  # the last image has ended, but one that came before it has not
        await criu.finish()
        await streams[0].aclose()
        await capture.ended.wait()
    wanted = {name: PAGES[number:] for number, name in enumerate(names)}
    assert capture.out.rounds == [("s1", {"core-7.img": b"c", **wanted})]
    assert capture.ingest.ended_well


@VARIANTS
async def test_connections_are_taken_in_their_order_whatever_is_scheduled_first(node_dir: Path, variant: str) -> None:
    """All of a dump is said before the proxy gets to run: the push comes first, and what was written last counts."""
    images = {f"core-{number}.img": body(f"{number}") for number in range(13)} | {"inventory.img": b"i"}
    for _ in range(40):
        async with capturing(node_dir) as capture:
            await trio.testing.wait_all_tasks_blocked()
            criu = capture.criu("s1", variant)
            criu.push_now()
            for name, data in images.items():
                criu.image_now(name, data)
            criu.finish_now()
            await capture.ended.wait()
        assert capture.out.rounds == [("s1", images)]
        assert capture.ingest.ended_well


async def test_one_criu_that_pre_dumps_again_and_again(node_dir: Path) -> None:
    """Driven by RPC, perhaps. All is said before the proxy gets to run."""
    for _ in range(40):
        async with capturing(node_dir) as capture:
            await trio.testing.wait_all_tasks_blocked()
            snapshots = ["s0", "s1", "s2"]
            for snapshot in snapshots:
                criu = capture.criu(snapshot)
                criu.push_now()
                criu.image_now("pages-1.img", snapshot.encode())
                criu.image_now("inventory.img", b"i")
            criu.finish_now()
            await capture.ended.wait()
        wanted = [(one, {"pages-1.img": one.encode(), "inventory.img": b"i"}) for one in snapshots]
        assert capture.out.rounds == wanted
        assert not capture.ingest.ended_well, "a pre-dump was the last: nothing has been dumped"


@VARIANTS
async def test_three_hundred_images_at_once(node_dir: Path, variant: str) -> None:
    """Descriptors are given back with each: that is seen when the test is over."""
    names = [f"core-{number}.img" for number in range(300)]
    async with capturing(node_dir) as capture:
        steps = ["push", *(f"half:{name}" for name in names), "hold", "whole", "image:inventory.img", "finish"]
        criu = await capture.process("dump", "s1", *steps, options=variant_option(variant))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert capture.out.rounds == [("s1", {})], "all are open"
        await go_on(criu)
        await capture.ended.wait()
        await bury(criu, kill=False)
    assert capture.out.rounds == [("s1", {name: body(name) for name in [*names, "inventory.img"]})]
    assert capture.ingest.ended_well


# ---- what CRIU reads ----


@VARIANTS
async def test_what_is_not_there_or_not_whole_is_said_to_be_missing_at_once(node_dir: Path, variant: str) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1", variant)
        await criu.push()
        assert await criu.read("pages-1.img", "s0") is None
        async with await criu.open("pages-1.img") as stream:
            await stream.send_all(PAGES[:10])
            assert await criu.read("pages-1.img") is None
        await criu.image("inventory.img", b"i")
        await criu.finish()


@VARIANTS
async def test_an_image_of_an_earlier_round_is_read_back(node_dir: Path, variant: str) -> None:
    async with capturing(node_dir) as capture:
        await pre_dump(capture, "s0", variant)
        criu = capture.criu("s1", variant)
        await criu.push()
        for _ in range(2):
            assert await criu.read("pages-1.img", "s0") == PRE_DUMP["pages-1.img"]
        stream = await criu.open_read("pages-1.img", "s0")  # CRIU opens it just to see that it is there
        assert stream is not None
        await stream.aclose()
        assert await criu.read("core-7.img", "s0") is None
        await criu.finish()


async def test_an_id_that_is_pushed_again_begins_anew(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        await pre_dump(capture, ".")
        criu = capture.criu(".")
        await criu.push()
        assert await criu.read("pages-1.img") is None, "that was another round"
        for name, data in DUMP.items():
            await criu.image(name, data)
        assert await criu.read("pages-1.img") == DUMP["pages-1.img"]
        await criu.finish()
    assert capture.out.rounds == [(".", PRE_DUMP), (".", DUMP)]


async def test_a_list_before_any_push_has_no_answer(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        with pytest.raises(EOFError):
            await criu.ids()
        await run(criu, DUMP)
        await criu.finish()
    assert capture.out.rounds == [("s1", DUMP)]


# ---- who does wrong ----


async def test_a_silent_client_holds_nobody_up(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        silent = await capture.process("dump", "s1", "connect", "hold")
        criu = capture.criu("s1")
        await run(criu, DUMP)
        await capture.until_complete()
        await criu.finish()
        await capture.ended.wait()
        await bury(silent)
    assert capture.out.rounds == [("s1", DUMP)] and capture.ingest.ended_well


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"\xff\xff\xff\xff", id="length of 4 GiB"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
        pytest.param(entry("../x", "s1", 1), id="name with a path"),
        pytest.param(entry("a.img", "s2", 1) + b"\0", id="another id"),
        pytest.param(entry("core-7.img", "s1", 1) + b"\0", id="an image that has come"),
        pytest.param(entry("x.img", "s1", 7), id="mode"),
    ],
)
async def test_one_that_does_wrong_ends_alone(node_dir: Path, raw: bytes) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        await criu.push()
        await criu.image("core-7.img", b"c")
        assert await hung_up(await criu.ask(raw))
        await criu.image("inventory.img", b"i")
        await criu.finish()
    assert capture.out.rounds == [("s1", {"core-7.img": b"c", "inventory.img": b"i"})]
    assert capture.ingest.ended_well


async def test_a_header_that_is_cut_ends_alone(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        await criu.push()
        for size in (2, 4, 9):
            criu.connect(entry("core-7.img", "s1", 1)[:size]).close()
        for name, data in DUMP.items():
            await criu.image(name, data)
        await criu.finish()
    assert capture.out.rounds == [("s1", DUMP)]


async def test_an_image_that_goes_wrong_spoils_its_round(node_dir: Path) -> None:
    """CRIU may believe it delivered, for its begin was heard: what misses it must not be taken for whole."""
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        await criu.push()
        await criu.image("core-7.img", b"c")
        with criu.connect(entry("mm-7.img", "s1", 1)) as sock, pipe_end() as fd:
            socket.send_fds(sock, [b"x"], [fd])
            assert await hung_up(sock.dup())
        await criu.image("inventory.img", b"i")
        await criu.finish()
        await capture.ended.wait()
    assert not capture.ingest.complete and not capture.ingest.ended_well


async def test_what_is_no_pipe_is_an_error(node_dir: Path) -> None:
    with pytest.raises(OSError, match="descriptor"):
        async with capturing(node_dir) as capture:
            criu = capture.criu("s1")
            await criu.push()
            with (node_dir / "file").open("wb") as file, criu.connect(entry("core-7.img", "s1", 1)) as sock:
                socket.send_fds(sock, [b"\0"], [file.fileno()])
            await capture.ended.wait()


@contextmanager
def pipe_end() -> Iterator[int]:
    reader, writer = os.pipe()
    try:
        yield reader
    finally:
        os.close(reader)
        os.close(writer)


async def test_a_client_of_another_user_is_refused(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        node_dir.chmod(0o755)
        (node_dir / PROXY).chmod(0o666)
        criu = capture.criu("s1")
        os.seteuid(65534)
        try:
            criu.push_now()
        finally:
            os.seteuid(0)
        with pytest.raises(EOFError):
            await criu.ids()
        await run(criu, DUMP)
        await criu.finish()
    assert capture.out.rounds == [("s1", DUMP)]


@pytest.mark.parametrize("theirs", ["s1", "s2"], ids=["of the same id", "of another id"])
async def test_a_second_criu_while_one_is_at_work_is_refused_whatever_it_says(node_dir: Path, theirs: str) -> None:
    """Its push has no answer, so it goes on: with images of another process, and an end."""
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        await criu.push()
        await criu.image("core-7.img", b"c")
        second = await capture.process("dump", theirs, "push", "hold", "finish", "hold")
        run_at_once(command("dump", node_dir, theirs, "push", "now:pages-1.img", "now:core-8.img", "finish"))
        await go_on(second)
        await says(second, "holds")
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not capture.ended.is_set(), "it has ended what was not its own"
        await criu.image("inventory.img", b"i")
        await criu.finish()
        await capture.ended.wait()
        await bury(second)
    assert capture.out.rounds == [("s1", {"core-7.img": b"c", "inventory.img": b"i"})]
    assert capture.ingest.ended_well


async def test_of_two_that_follow_a_dead_one_the_first_goes_on(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        dead = await capture.process("dump", "s1", "push", "hold")
        stream = await capture.criu("s1").open("core-7.img")  # keeps the round of the dead one open
        await stream.send_all(b"c")
        await bury(dead)
        followers = [await capture.process("dump", "s2", "push", "hold") for _ in range(2)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked(0.01)
        begun = [message for message in capture.out.messages if isinstance(message, BeginRound)]
        assert [one.snapshot for one in begun] == ["s1", "s2"]
        for follower in followers:
            await bury(follower)
        await run(capture.criu("s3"), DUMP)
        await capture.criu("s3").finish()
    assert capture.out.rounds == [("s3", DUMP)]


# ---- how it ends ----


@VARIANTS
@pytest.mark.parametrize("verb", ["predump", "dump"])
async def test_one_that_is_killed_is_dropped_and_the_next_one_works(node_dir: Path, variant: str, verb: str) -> None:
    async with capturing(node_dir) as capture:
        await pre_dump(capture, "s0", variant)
        name = "core-7.img" if verb == "dump" else "pagemap-7.img"
        killed = await capture.process(
            verb, "s1", "push", f"image:{name}", "half:pages-1.img", "hold", options=variant_option(variant)
        )
        await bury(killed)
        criu = capture.criu("s2", variant)
        await criu.push()
        assert await criu.read(name, "s1") is None, "it went with its round"
        assert await criu.read("pages-1.img", "s0") == PRE_DUMP["pages-1.img"]
        for image, data in DUMP.items():
            await criu.image(image, data)
        await criu.finish()
    assert capture.out.rounds == [("s0", PRE_DUMP), ("s2", DUMP)]
    assert capture.ingest.ended_well


async def test_a_pre_dump_that_ends_right_behind_its_last_image_is_whole(node_dir: Path) -> None:
    """Its end may be seen before its last connection is: the round is not dropped."""
    for _ in range(5):
        async with capturing(node_dir) as capture:
            pre_dump = await capture.process("predump", "s0", "push", "image:pages-1.img", "hold", "now:inventory.img")
            await trio.testing.wait_all_tasks_blocked(0.01)
            end_at_once(pre_dump)
            await bury(pre_dump, kill=False)
            await run(capture.criu("s1"), DUMP)
            await capture.criu("s1").finish()
        assert [snapshot for snapshot, _ in capture.out.rounds] == ["s0", "s1"]


async def test_an_image_from_a_child_that_has_ended_already_counts(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1")
        await criu.push()
        await trio.testing.wait_all_tasks_blocked(0.01)
        run_at_once(command("dump", node_dir, "s1", "now:pages-1.img"))
        criu.image_now("inventory.img", b"i")
        criu.finish_now()
        await capture.ended.wait()
    assert capture.out.rounds == [("s1", {"pages-1.img": body("pages-1.img"), "inventory.img": b"i"})]


@VARIANTS
async def test_the_end_of_a_dump_that_failed(node_dir: Path, variant: str) -> None:
    async with capturing(node_dir) as capture:
        criu = capture.criu("s1", variant)
        await criu.push()
        await criu.image("core-7.img", b"c")
        await criu.finish()
        await capture.ended.wait()
    assert not capture.ingest.complete and not capture.ingest.ended_well


@pytest.mark.parametrize("fate", ["killed", "alive"])
async def test_without_our_script_it_ended_well_if_the_tree_is_dead(
    node_dir: Path, fate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CRIU says the end also when it let the tasks go, as when somebody's own post-dump script has failed."""
    monkeypatch.setattr(remote_run, "KILL_TIMEOUT", 0.1)
    async with capturing(node_dir) as capture:
        root = await trio.lowlevel.open_process(["sleep", "infinity"])
        steps = ["push", "image:core-7.img", "image:inventory.img", "hold", "finish", "hold"]
        criu = await capture.process("dump", "s1", *steps, options=("-t", root.pid))
        if fate == "killed":
            root.kill()
        await go_on(criu)
        await capture.ended.wait()
        await bury(criu)
        root.kill()
        await root.wait()
    assert capture.ingest.complete
    assert capture.ingest.ended_well is (fate == "killed")


async def test_without_our_script_one_that_dies_when_the_tree_is_dead_has_ended_well(node_dir: Path) -> None:
    """It was killed between the kill of the tree and its own last word."""
    async with capturing(node_dir) as capture:
        root = await trio.lowlevel.open_process(["sleep", "infinity"])
        steps = ["push", "image:core-7.img", "image:inventory.img", "hold"]
        criu = await capture.process("dump", "s1", *steps, options=("-t", root.pid))
        await capture.until_complete()
        root.kill()
        await root.wait()
        await bury(criu)
        await capture.ended.wait()
    assert capture.ingest.ended_well


async def test_without_our_script_one_that_dies_when_the_tree_lives_is_dropped(
    node_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_run, "KILL_TIMEOUT", 0.1)
    async with capturing(node_dir) as capture:
        root = await trio.lowlevel.open_process(["sleep", "infinity"])
        steps = ["push", "image:core-7.img", "image:inventory.img", "hold"]
        criu = await capture.process("dump", "s1", *steps, options=("-t", root.pid))
        await capture.until_complete()
        await bury(criu)
        await run(capture.criu("s2"), DUMP)
        await capture.criu("s2").finish()
        root.kill()
        await root.wait()
    assert capture.out.rounds == [("s2", DUMP)]


# ---- our action script ----


async def test_the_end_of_a_dump_with_our_script_decides_nothing(node_dir: Path) -> None:
    """Its script has decided, or it failed before."""
    async with capturing(node_dir) as capture:
        capture.announced.add(os.getpid())
        await run(capture.criu("s1"), DUMP)
        await capture.criu("s1").finish()
    assert capture.ingest.complete and not capture.ingest.ended_well


async def test_one_with_our_script_that_dies_ends_it(node_dir: Path) -> None:
    async with capturing(node_dir) as capture:
        steps = ["push", "hold", "image:core-7.img", "half:pages-1.img", "hold"]
        criu = await capture.process("dump", "s1", *steps)
        capture.announced.add(criu.pid)
        await go_on(criu)
        await says(criu, "holds")
        await bury(criu)
        await capture.ended.wait()
    assert not capture.ingest.complete and not capture.ingest.ended_well


async def test_where_the_script_is_insisted_on_only_pre_dumps_go_without(node_dir: Path) -> None:
    async with capturing(node_dir, insists=True) as capture:
        await pre_dump(capture, "s0")
        criu = capture.criu("s1")
        await criu.push()
        await criu.image("pages-1.img", b"p")
        assert await hung_up(await criu.ask(entry("core-7.img", "s1", 1)))
        await criu.image("inventory.img", b"i")
        await criu.finish()
        await capture.ended.wait()
    assert not capture.ingest.ended_well, "what was refused has not been dumped"


async def test_where_the_script_is_insisted_on_one_that_has_it_goes_through(node_dir: Path) -> None:
    async with capturing(node_dir, insists=True) as capture:
        capture.announced.add(os.getpid())
        await run(capture.criu("s1"), DUMP)
        await capture.criu("s1").finish()
    assert capture.out.rounds == [("s1", DUMP)]


# ---- transforms ----


class Holding:
    """Keeps the core images until the end of the dump."""

    name, needs_memory, warnings = "holding", False, ()

    def __init__(self) -> None:
        self._held: Images = {}

    def wants(self, image: str) -> bool:
        return image.startswith("core-")

    def transform(self, image: str, data: bytes) -> bytes | None:
        self._held[image] = data
        return None

    def finish(self, dump: EndOfDump) -> Images:
        return {image: data.upper() for image, data in self._held.items()}


async def test_an_image_that_a_transform_holds_is_whole(node_dir: Path) -> None:
    async with capturing(node_dir, chain=Chain([Holding()])) as capture:
        criu = capture.criu("s1")
        await run(criu, DUMP)
        assert await criu.read("core-7.img") is None, "it is not at the cache yet"
        await criu.finish()
    assert capture.ingest.ended_well
    assert capture.out.rounds == [("s1", {name: data for name, data in DUMP.items() if name != "core-7.img"})]


async def test_the_tasks_of_a_dump_are_those_that_criu_traces() -> None:
    """Whoever drives it, and whatever its command line says."""
    task = await trio.lowlevel.open_process(["sleep", "infinity"])
    tracer = await trio.lowlevel.open_process(
        ["strace", "-f", "-o", "/dev/null", "-p", str(task.pid)], stderr=subprocess.PIPE
    )
    assert tracer.stderr is not None
    assert b"attached" in await tracer.stderr.receive_some()
    assert [one.pid for one in remote_run.dumped_by(tracer.pid)] == [task.pid]
    found = remote_run.dumped_by(tracer.pid)
    task.kill()
    await task.wait()
    await tracer.wait()
    await tracer.stderr.aclose()
    assert remote_run.are_gone(found)
    assert remote_run.dumped_by(tracer.pid) == []
