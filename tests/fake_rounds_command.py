"""The command of `tests.fake_rounds`: a CRIU whose pre-dumps go by a plan. Standard library only, and started without
site packages: tests call it many times.

    python -S fake_rounds_command.py DIRECTORY REAL-CRIU WORDS-OF-CRIU...

The directory has the `plan`, in `turns` what is said to a page server, and gets the `runs`.
"""

import json
import os
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

SPLICE_MODE, READ_MODE = 1, 2  #: of a pre-dump


def runs(directory: Path, *actions: str) -> list[list[str]]:
    """The command lines so far, of these actions."""
    told = directory / "runs"
    lines = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    return [line for line in lines if line[0] in actions]


def value(words: list[str], name: str) -> str | None:
    """What an option of a command line is given."""
    return words[words.index(name) + 1] if name in words else None


def _pre_dump(directory: Path, words: list[str]) -> int:
    plan = (directory / "plan").read_text().split()
    step = plan[min(len(runs(directory, "pre-dump")), len(plan)) - 1]
    images = _enter(words)
    code = _speak(directory, step, _page_server(words))
    _leave(images, step, code)
    return code


def _enter(words: list[str]) -> int:
    """As CRIU does: its images directory stays open, with a link to its parent, and it goes to its work directory."""
    images = os.open(value(words, "-D") or ".", os.O_RDONLY)
    if parent := value(words, "--prev-images-dir"):
        os.symlink(parent, "parent", dir_fd=images)
    os.chdir(value(words, "-W") or f"/proc/self/fd/{images}")
    return images


def _page_server(words: list[str]) -> socket.socket:
    if fd := value(words, "--ps-socket"):
        return socket.socket(fileno=int(fd))
    return socket.create_connection((value(words, "--address") or "", int(value(words, "--port") or "")))


def _leave(images: int, step: str, code: int) -> None:
    """It writes its inventory in any case, its statistics only if all went well."""
    Path(f"/proc/self/fd/{images}/inventory.img").write_bytes(inventory(READ_MODE if step == "reads" else SPLICE_MODE))
    if code == 0 and step != "silent":
        Path("stats-dump").write_bytes(b"statistics")


def inventory(mode: int) -> bytes:
    """The image that a pre-dump writes in any case."""
    entry = bytes([0x08, 2, 0x48, mode])
    return struct.pack("<II", 0x58313116, len(entry)) + entry


def _speak(directory: Path, step: str, sock: socket.socket) -> int:
    with sock:
        if step == "silent":
            return 0
        if step == "hesitates" and not _may_go_on(directory, sock):
            return 1
        *said, last = map(bytes.fromhex, (directory / "turns").read_text().split())
        for turn in said:
            sock.sendall(turn)
            assert sock.recv(1)
        if step == "waits" and not _may_go_on(directory, sock):
            return 1
        if step in ("dies", "holds"):
            sock.sendall(last[:5000])
            (directory / "half-way").touch()
            if step == "dies":
                os.kill(os.getpid(), signal.SIGKILL)
            with suppress(ConnectionResetError):  # it has not read all that we said
                sock.recv(1)
            (directory / "let-go").touch()
            return 1
        sock.sendall(last)
        assert sock.recv(4) == bytes(4)
    return 1 if step == "fails" else 0


def _may_go_on(directory: Path, sock: socket.socket) -> bool:
    """Wait until it may; False if the page server hangs up."""
    with (directory / "go-on").open("rb+", buffering=0) as told:
        (directory / "half-way").touch()
        ready, _, _ = select.select([told.fileno(), sock.fileno()], [], [])
        return told.fileno() in ready


def _without(words: list[str], *names: str) -> list[str]:
    return [word for index, word in enumerate(words) if not {word, words[index - 1]} & set(names)]


def _main(place: str, real: str, *given: str) -> int:
    directory, words = Path(place), list(given)
    with (directory / "runs").open("a") as log:
        log.write(json.dumps(words) + "\n")
    if words[0] == "dump":
        os.execv(real, [real, *(word for word in _without(words, "--prev-images-dir") if word != "--track-mem")])
    return _pre_dump(directory, words)


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
