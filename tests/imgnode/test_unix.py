"""UNIX sockets: whose they are, what is left of them, the descriptors that come over them."""

import array
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from imgnode.unix import (
    PeerCredentials,
    allowed,
    close_all,
    linked,
    listening,
    peer_credentials,
    readable,
    receive_with_fds,
)
from imgwire.errors import UsageError

pytestmark = pytest.mark.t1

NOBODY = 65534


@contextmanager
def as_nobody() -> Iterator[None]:
    """What is done here without a checkpoint is done as another user."""
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def leave_stale(path: Path) -> None:
    """A socket file as a killed program leaves it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.bind(str(path))
        sock.listen()


async def test_a_socket_is_private_and_goes_with_its_owner(node_dir: Path) -> None:
    path = node_dir / "s.sock"
    before = os.umask(0o022)
    try:
        async with listening(path) as listener:
            assert path.stat().st_mode & 0o777 == 0o600
            stream = await trio.open_unix_socket(path)
            peer, _ = await listener.accept()
            with peer:
                assert peer_credentials(peer) == PeerCredentials(os.getpid(), os.geteuid())
            await stream.aclose()
        assert not path.exists()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


async def test_many_at_once_leave_the_umask_as_it_was(node_dir: Path) -> None:
    before = os.umask(0o022)

    async def listen(number: int) -> None:
        async with listening(node_dir / f"{number}.sock"):
            (node_dir / f"{number}").mkdir()
            await trio.lowlevel.checkpoint()

    try:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(listen, number)
        assert {(node_dir / f"{number}").stat().st_mode & 0o777 for number in range(10)} == {0o755}
        assert os.umask(before) == 0o022
    finally:
        os.umask(before)


async def test_what_a_killed_program_left_is_replaced(node_dir: Path) -> None:
    leave_stale(node_dir / "s.sock")
    async with listening(node_dir / "s.sock"):
        await (await trio.open_unix_socket(node_dir / "s.sock")).aclose()


@pytest.mark.parametrize("waiting", [0, 5])
async def test_another_program_s_socket_is_left_alone(node_dir: Path, waiting: int) -> None:
    path = node_dir / "s.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as other:
        other.bind(str(path))
        other.listen(0)
        clients = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(waiting)]
        for client in clients:  # until its backlog is full
            client.setblocking(False)
            client.connect_ex(str(path))
        with pytest.raises(UsageError, match="another program listens there"):
            async with listening(path):
                pytest.fail("listened")
        for client in clients:
            client.close()
    assert path.is_socket()


@pytest.mark.parametrize("kind", ["file", "directory", "dangling link"])
async def test_what_is_no_socket_is_left_alone(node_dir: Path, kind: str) -> None:
    path = node_dir / "s.sock"
    if kind == "file":
        path.touch()
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to("nowhere")
    with pytest.raises(UsageError, match="not a socket"):
        async with listening(path):
            pytest.fail("listened")
    assert path.exists() or path.is_symlink()


async def test_a_successor_s_socket_is_not_removed(node_dir: Path) -> None:
    path = node_dir / "s.sock"
    async with listening(path):
        path.unlink()
        leave_stale(path)
    assert path.exists()


async def test_one_that_was_removed_already_is_no_error(node_dir: Path) -> None:
    async with listening(node_dir / "s.sock"):
        (node_dir / "s.sock").unlink()


async def test_a_path_that_is_too_long_is_named(node_dir: Path) -> None:
    longest = node_dir / ("x" * (107 - len(str(node_dir)) - 1))
    async with listening(longest):
        assert longest.is_socket()
    with pytest.raises(UsageError, match="at most 107 bytes"):
        async with listening(longest.with_name(longest.name + "x")):
            pytest.fail("listened")


async def test_a_directory_that_is_not_there_is_named(node_dir: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        async with listening(node_dir / "gone" / "s.sock"):
            pytest.fail("listened")
    assert caught.value.filename == str(node_dir / "gone" / "s.sock")


async def test_a_client_of_another_user_is_known_as_such(node_dir: Path) -> None:
    path = node_dir / "s.sock"
    async with listening(path) as listener:
        node_dir.chmod(0o755)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            with as_nobody(), pytest.raises(PermissionError):  # the mode alone keeps others out
                client.connect(str(path))
            path.chmod(0o666)
            with as_nobody():
                client.connect(str(path))
            peer, _ = await listener.accept()
            with peer:
                assert peer_credentials(peer).uid == NOBODY
                assert not allowed(peer_credentials(peer))


@pytest.mark.parametrize(
    ("uid", "ours", "answer"), [(0, 0, True), (0, 1000, True), (1000, 1000, True), (1, 1000, False)]
)
def test_root_and_the_same_user_are_allowed(uid: int, ours: int, answer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: ours)
    assert allowed(PeerCredentials(1, uid)) is answer


# ---- descriptors ----


async def pass_fds(count: int) -> tuple[bytes, list[int]]:
    """Send a byte with that many descriptors, and receive them."""
    near, far = trio.socket.socketpair()
    with near, far:
        fds = array.array("i", [near.fileno()] * count)
        await near.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)] if count else [])
        return await receive_with_fds(far, 10)


@pytest.mark.parametrize("count", [0, 1, 16])
async def test_descriptors_come_with_their_byte_and_are_ours(count: int) -> None:
    data, fds = await pass_fds(count)
    assert data == b"x" and len(fds) == count
    assert not any(os.get_inheritable(fd) for fd in fds)
    close_all(fds)


@pytest.mark.parametrize("count", [17, 200])
async def test_more_than_fit_are_closed_and_refused(count: int) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(OSError, match="descriptors were lost"):
        await pass_fds(count)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


async def test_the_end_has_no_descriptors() -> None:
    near, far = trio.socket.socketpair()
    near.close()
    with far:
        assert await receive_with_fds(far, 10) == (b"", [])


async def test_a_socket_is_found_in_other_directories(node_dir: Path) -> None:
    others = [node_dir / name for name in ("one", "two")]
    for other in others:
        other.mkdir()
    (others[1] / "s.sock").symlink_to("/nowhere")  # as a killed program leaves it
    async with listening(node_dir / "s.sock") as listener:
        with linked(node_dir / "s.sock", others):
            for other in others:
                stream = await trio.open_unix_socket(other / "s.sock")
                peer, _ = await listener.accept()
                peer.close()
                await stream.aclose()
        assert not any(list(other.iterdir()) for other in others)


@pytest.mark.parametrize("there", ["file", "directory", "socket", "nothing"])
def test_a_link_takes_nobodys_place(node_dir: Path, there: str) -> None:
    """It says which one, and leaves none of those that it made before."""
    free, taken = node_dir / "free", node_dir / "taken"
    free.mkdir()
    if there != "nothing":
        taken.mkdir()
    match there:
        case "file":
            (taken / "s.sock").write_text("mine")
        case "directory":
            (taken / "s.sock").mkdir()
        case "socket":
            leave_stale(taken / "s.sock")
    with (
        pytest.raises(UsageError, match=f"{taken}/s.sock: .*; use another directory"),
        linked(node_dir / "s.sock", [free, taken]),
    ):
        pytest.fail("linked")
    assert not list(free.iterdir())
    assert (taken / "s.sock").exists() is (there != "nothing")


async def test_whether_something_has_come_is_known_without_reading_it() -> None:
    near, far = trio.socket.socketpair()
    with near, far:
        assert not readable(far)
        await near.send(b"x")
        assert readable(far) and readable(far)
        assert await far.recv(1) == b"x"
        assert not readable(far)
        near.close()
        assert readable(far), "its end is something, too"
