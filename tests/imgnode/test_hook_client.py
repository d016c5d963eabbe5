"""The action scripts' conversation: answers that come together, a program that goes, a CRIU that dies."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from imgnode.control_client import MAX_RECEIVED, ControlClient
from imgnode.hook_client import CriuWatch, connect

pytestmark = pytest.mark.t1


@pytest.fixture
def peers(node_dir: Path) -> Iterator[tuple[ControlClient, socket.socket]]:
    """A client and the program's end of its connection."""
    path = node_dir / "program.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        client = connect(str(path))
        assert client is not None
        program, _ = listener.accept()
        with program:
            yield client, program
        client.close()


@pytest.fixture
def watch() -> Iterator[CriuWatch]:
    """A watch over a CRIU that lives."""
    watch = CriuWatch(os.getpid())
    yield watch
    watch.close()


def test_answers_that_come_in_one_packet_are_answers_one_by_one(
    peers: tuple[ControlClient, socket.socket], watch: CriuWatch
) -> None:
    client, program = peers
    program.sendall(b'{"session": "s"}\n{"decision": "run"}\n')
    assert watch.answer(client) == {"session": "s"}
    assert client.has_answer
    assert watch.answer(client) == {"decision": "run"}, "it does not wait for bytes that have come already"


def test_an_answer_in_pieces_is_one(peers: tuple[ControlClient, socket.socket]) -> None:
    client, program = peers
    program.sendall(b'{"a": 1')
    program.sendall(b"}\n")
    assert client.answer() == {"a": 1}


def test_the_program_goes(peers: tuple[ControlClient, socket.socket], watch: CriuWatch) -> None:
    client, program = peers
    program.sendall(b'{"cut": ')
    program.close()
    assert watch.answer(client) is None


def test_an_answer_without_end_is_none(peers: tuple[ControlClient, socket.socket]) -> None:
    client, program = peers
    babble = threading.Thread(target=_babble, args=(program,))
    babble.start()
    with pytest.raises(ValueError, match="does not end"):
        client.answer()
    client.close()
    babble.join(10)


def _babble(program: socket.socket) -> None:
    try:
        program.sendall(b"x" * 2 * MAX_RECEIVED)
    except (BrokenPipeError, ConnectionResetError):  # it was hung up on
        return


def test_criu_dies(peers: tuple[ControlClient, socket.socket]) -> None:
    client, _ = peers
    criu = subprocess.Popen([sys.executable, "-S", "-c", "import signal; signal.pause()"])
    watch = CriuWatch(criu.pid)
    assert not watch.died_within(0)
    criu.send_signal(signal.SIGKILL)
    assert watch.died_within(10_000)
    assert watch.answer(client) is None
    watch.close()
    criu.wait()
    assert CriuWatch(criu.pid).died_within(0), "nobody has that pid"


def test_nobody_listens(node_dir: Path) -> None:
    assert connect(str(node_dir / "none.sock")) is None
