"""sd_notify and socket activation, against real sockets; activation in a real child, as systemd does it."""

import fcntl
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import trio
import trio.testing

from imgnode import systemd
from imgwire.errors import UsageError

pytestmark = pytest.mark.t1


def _receiver(address: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(address)
    sock.settimeout(5)
    return sock


def test_notify_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert systemd.notify("READY=1") is False


def test_notify_by_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    with _receiver(path) as sock:
        assert systemd.notify("READY=1\nSTATUS=3 sessions")
        assert sock.recv(100) == b"READY=1\nSTATUS=3 sessions"


def test_notify_by_abstract_name(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"imgnode-test-{os.getpid()}"
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
    with _receiver(f"\0{name}") as sock:
        assert systemd.notify("STOPPING=1")
        assert sock.recv(100) == b"STOPPING=1"


def test_notify_refuses_other_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "vsock:2:1")
    with pytest.raises(UsageError, match="vsock:2:1"):
        systemd.notify("READY=1")


def test_notify_says_when_nobody_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with pytest.raises(FileNotFoundError):
        systemd.notify("READY=1")


def test_watchdog_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    assert systemd.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert systemd.watchdog_interval() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert systemd.watchdog_interval() is None
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    monkeypatch.setenv("WATCHDOG_USEC", "soon")
    with pytest.raises(UsageError, match="WATCHDOG_USEC"):
        systemd.watchdog_interval()


async def test_watchdog_gives_signs_of_life(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    path = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    monkeypatch.setenv("WATCHDOG_USEC", "2000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    with _receiver(path) as sock:
        with trio.move_on_after(2.5):
            await systemd.watchdog()
        assert [sock.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(100)
    assert autojump_clock.current_time() >= 2.5


async def test_watchdog_returns_when_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    with trio.fail_after(1):
        await systemd.watchdog()


CHILD = """
import json, os, sys
from imgnode import systemd
if sys.argv[1] == "mine":
    os.environ["LISTEN_PID"] = str(os.getpid())
found = systemd.listen_fds()
print(json.dumps({
    "sockets": {name: [[s.getsockname(), s.fileno(), s.get_inheritable()] for s in socks]
                for name, socks in found.items()},
    "left": [v for v in os.environ if v.startswith("LISTEN_")],
}))
"""


def _activate(tmp_path: Path, count: int, whose: str = "mine", **env: str) -> dict[str, object]:
    """Start a child with `count` listening sockets at descriptors 3, 4, ... and what it found."""
    listeners = []
    for index in range(count):
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / f"s{index}"))
        sock.listen()
        listeners.append(sock)
    passed = [fcntl.fcntl(sock, fcntl.F_DUPFD, 50) for sock in listeners]  # out of the way of 3, 4, ...
    moves = "; ".join(f"exec {3 + index}<&{fd} {fd}<&-" for index, fd in enumerate(passed))
    command = f'{moves or ":"}; exec "$0" -c "$1" {whose}'
    done = subprocess.run(
        ["/bin/bash", "-c", command, sys.executable, CHILD],
        env={**os.environ, "LISTEN_FDS": str(count), "LISTEN_PID": "1", **env},
        close_fds=False,
        capture_output=True,
        check=False,
        timeout=30,
    )
    for sock, fd in zip(listeners, passed, strict=True):
        sock.close()
        os.close(fd)
    done.check_returncode()
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_listen_fds_by_name(tmp_path: Path) -> None:
    found = _activate(tmp_path, 3, LISTEN_FDNAMES="link:metrics:link")
    s0, s1, s2 = (str(tmp_path / f"s{index}") for index in range(3))
    assert found["sockets"] == {"link": [[s0, 3, False], [s2, 5, False]], "metrics": [[s1, 4, False]]}
    assert found["left"] == []


def test_listen_fds_without_names(tmp_path: Path) -> None:
    found = _activate(tmp_path, 1)
    assert found["sockets"] == {"unknown": [[str(tmp_path / "s0"), 3, False]]}


def test_listen_fds_of_another_process(tmp_path: Path) -> None:
    found = _activate(tmp_path, 1, whose="other", LISTEN_FDNAMES="link")
    assert found == {"sockets": {}, "left": []}


def test_listen_fds_without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISTEN_PID", raising=False)
    assert systemd.listen_fds() == {}


def test_listen_fds_that_are_no_sockets(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        _activate(tmp_path, 0, LISTEN_FDS="1000")
    assert b"LISTEN_FDS passes descriptor 3" in caught.value.stderr
