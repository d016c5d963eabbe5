"""A real CRIU that takes the place of the original `criu --remote`: its process, its hook calls, its images.

The original client cannot be had any more; today's CRIU has `--stream`. This program stands between the two: it speaks
the original's recorded bytes to our sockets, as `criu --remote` did, and starts CRIU with `--stream`, whose requests it
passes on, descriptors and all. So images come and are asked for when a real CRIU does that.

    python -m tests.remote_shim dump --remote -t PID -D s1 [-W DIR] [--action-script S] --criu CRIU --scratch DIR
    python -m tests.remote_shim restore --remote -D s1 [-W DIR] [--action-script S] --criu CRIU --scratch DIR

A dump is this process, with CRIU as a child that dies with it; a restore becomes CRIU itself, with a child that feeds
it. `predump` writes what a pre-dump would have: CRIU dumps into a directory and lets the tasks run; pages that are as
in the round before are left out (`--before`, the directory of that round).
"""

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import trio
from trio.lowlevel import FdStream

from tests.fake_criu import EXISTS as STREAM_EXISTS
from tests.fake_criu import MISSING as STREAM_MISSING
from tests.fake_remote_criu import (
    CACHE,
    EXISTS,
    MISSING,
    PROXY,
    READ,
    RemoteCriu,
    entry,
    exactly,
    given,
    pass_descriptor,
)

CAPTURE, SERVE = "streamer-capture.sock", "streamer-serve.sock"
CHUNK = 1 << 20


class Words:
    """The command line."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self.verb = words[0]
        self.snapshot = self.value("-D") or "."
        self.criu, self.scratch = self.value("--criu") or "", Path(self.value("--scratch") or ".")
        self.script = self.value("--action-script")
        variant = "nopipe" if "--nopipe" in words else "pipe"
        work = self.value("-W")
        side = PROXY if self.verb in ("dump", "predump") else CACHE
        self.remote = RemoteCriu(side, Path(self.snapshot), self.snapshot, variant, Path(work) if work else None)

    def value(self, name: str) -> str | None:
        found = given(self.words, name)
        return found[-1] if found else None

    def write_script(self, *cases: str) -> Path:
        """CRIU's action script; what no case takes goes to that of the command line."""
        path = self.scratch / f"{self.verb}-script"
        rest = [f"*) exec {shlex.quote(self.script)} ;;"] if self.script else []
        path.write_text("\n".join(["#!/bin/sh", 'case "$CRTOOLS_SCRIPT_ACTION" in', *cases, *rest, "esac", ""]))
        path.chmod(0o700)
        return path


async def pump(source: FdStream, target: FdStream) -> None:
    async with source, target:
        while part := await source.receive_some(CHUNK):
            await target.send_all(part)


async def requests(sock: trio.socket.SocketType) -> str | None:
    """The name of the next image that `criu --stream` asks for."""
    size = await exactly(sock, 4, end=True)
    if not size:
        return None
    raw = await exactly(sock, int.from_bytes(size, "little"))
    return raw[2 if raw[1] < 128 else 3 :].decode()


async def passed(sock: trio.socket.SocketType) -> int:
    """The descriptor that it passes for it."""
    data, ancillary, _, _ = await sock.recvmsg(1, 100, socket.MSG_CMSG_CLOEXEC)
    assert data == b"\0"
    return int.from_bytes(ancillary[0][2][:4], "little")


# ---- dump ----


def start_dump(words: Words, script: Path) -> "subprocess.Popen[bytes]":
    """CRIU, which dies with us: by whom it is killed makes no difference to its tasks."""
    command = [words.criu, "dump", "--stream", "-D", words.scratch, "-t", words.value("-t"), "-o", "dump.log"]
    together = ["setpriv", "--pdeathsig", "KILL", *command, "--action-script", script]
    return subprocess.Popen([str(word) for word in together])


async def dump(words: Words) -> int:
    """Play a dump; CRIU's exit code."""
    remote = words.remote
    await remote.push()
    as_us = f"CRTOOLS_IMAGE_DIR=/proc/{os.getpid()}/fd/3"
    script = words.write_script(
        *([f"pre-dump) export {as_us}; exec {shlex.quote(words.script)} ;;"] if words.script else [])
    )
    (words.scratch / CAPTURE).unlink(missing_ok=True)
    listener = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    await listener.bind(str(words.scratch / CAPTURE))
    listener.listen(1)
    with listener:
        process = start_dump(words, script)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_capture, words, listener)
            code = await trio.to_thread.run_sync(process.wait)
            if code:  # it may have failed before it connected
                nursery.cancel_scope.cancel()
    await remote.finish()
    return code


async def _capture(words: Words, listener: trio.socket.SocketType) -> None:
    """Pass CRIU's images on as they come; with --before when all of them are there."""
    sock, _ = await listener.accept()
    before = words.value("--before")
    layer = Layer(words, before) if before else None
    asked = False
    with sock:
        async with trio.open_nursery() as nursery:
            while (name := await requests(sock)) is not None:
                fd = await passed(sock)
                if not asked:
                    assert await words.remote.ids() == [words.snapshot]
                    asked = True
                _note(words, name)
                if layer:
                    layer.open += 1
                    nursery.start_soon(layer.take, name, fd)
                else:
                    await _pass_on(words.remote, name, fd, nursery)


class Layer:
    """The images of a dump that refers to a round before."""

    def __init__(self, words: Words, before: str) -> None:
        self._words, self._before = words, before
        self._images: dict[str, bytes] = {}
        self.open = 0

    async def take(self, name: str, fd: int) -> None:
        async with FdStream(fd) as stream:
            self._images[name] = b"".join([part async for part in stream])
        self.open -= 1
        if "inventory.img" in self._images and not self.open:
            await _send_layer(self._words, self._images, self._before)


async def _pass_on(remote: RemoteCriu, name: str, fd: int, nursery: trio.Nursery) -> None:
    """An image that CRIU writes into a pipe whose other end is `fd`. Whatever fails, CRIU finds its pipe closed."""
    try:
        if remote.variant == "nopipe":
            target = FdStream(await trio.to_thread.run_sync(remote.open_now, name))
            nursery.start_soon(_pump_unless_refused, FdStream(fd), target)
            return
        with remote.connect(entry(name, remote.snapshot, 1)) as sock:
            pass_descriptor(sock, os.dup(fd))
        os.close(fd)
    except OSError:  # refused
        os.close(fd)


async def _pump_unless_refused(source: FdStream, target: FdStream) -> None:
    try:
        await pump(source, target)
    except trio.BrokenResourceError:
        return


async def pre_dump(words: Words) -> int:
    """Play a pre-dump; its images stay in the scratch directory, for the round after it."""
    await words.remote.push()
    command = [words.criu, "dump", "--leave-running", "-D", words.scratch, "-t", words.value("-t"), "-o", "dump.log"]
    done = await trio.run_process([str(word) for word in command], check=False)
    if done.returncode == 0:
        assert await words.remote.ids() == [words.snapshot]
        images = {path.name: path.read_bytes() for path in words.scratch.glob("*.img")}
        kept = {name: data for name, data in images.items() if name.partition("-")[0] in ("pagemap", "pages")}
        for name in [*kept, "inventory.img"]:
            _note(words, name)
        await _send_layer(words, kept | {"inventory.img": images["inventory.img"]}, words.value("--before"))
    return done.returncode


def _note(words: Words, name: str) -> None:
    """For who reads the rounds back: which images each has."""
    names = words.value("--names")
    if names:
        with Path(names).open("a") as file:
            file.write(f"{words.snapshot} {name}\n")


async def _send_layer(words: Words, images: dict[str, bytes], before: str | None) -> None:
    """Send a round, its inventory last, without the pages that are as in the round before."""
    from tests.page_layers import without_what_is_in  # needs protobuf, which is slow to import

    layer = without_what_is_in(Path(before), images) if before else images
    for name in sorted(layer, key=lambda name: name == "inventory.img"):
        await words.remote.image(name, layer[name])


# ---- restore ----


def restore(words: Words) -> None:
    """Ask for the list, then become CRIU."""
    ids = trio.run(words.remote.ids)
    assert words.snapshot in ids, ids
    place = ["--stream", "-D", str(words.scratch)]
    if names := words.value("--names"):
        place = ["-D", str(trio.run(_fetch_layers, words, ids, Path(names)))]
    else:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        (words.scratch / SERVE).unlink(missing_ok=True)
        listener.bind(str(words.scratch / SERVE))
        listener.listen(1)
        feeder = [sys.executable, "-m", "tests.remote_shim", "feed", *words.words[1:]]
        feeder += ["--fd", str(listener.fileno()), "--of", str(os.getpid())]
        subprocess.Popen(feeder, pass_fds=[listener.fileno()])
        listener.close()
    again = shlex.join([sys.executable, "-m", "tests.remote_shim", "finish", *words.words[1:]])
    script = words.write_script(f"post-resume) cd {shlex.quote(str(Path.cwd()))}; exec {again} ;;")
    log = ["-d", "-o", str(words.scratch / "restore.log"), "--action-script", str(script)]
    os.execv(words.criu, [words.criu, "restore", *place, *log])


async def feed(words: Words) -> None:
    """Give CRIU, our parent, its images as it asks for them; and outlive it, for a child that ends disturbs it."""
    criu = os.pidfd_open(int(words.value("--of") or ""))
    listener = trio.socket.socket(fileno=int(words.value("--fd") or ""))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_feed, words, listener)
        await trio.lowlevel.wait_readable(criu)
        nursery.cancel_scope.cancel()


async def _feed(words: Words, listener: trio.socket.SocketType) -> None:
    sock, _ = await listener.accept()
    async with trio.open_nursery() as nursery:
        with sock:
            try:
                while (name := await requests(sock)) is not None:
                    await _answer(words.remote, sock, name, nursery)
            except EOFError:  # the cache has hung up: so do we
                return


async def _answer(remote: RemoteCriu, criu: trio.socket.SocketType, name: str, nursery: trio.Nursery) -> None:
    cache = await remote.ask(entry(name, remote.snapshot, READ))
    with cache:
        answer = await exactly(cache, len(EXISTS))
        await criu.send(STREAM_MISSING if answer == MISSING else STREAM_EXISTS)
        if answer == MISSING:
            return
        fd = await passed(criu)
        if remote.variant == "nopipe":
            nursery.start_soon(pump, FdStream(os.dup(cache.fileno())), FdStream(fd))
        else:
            pass_descriptor(cache, fd)


async def _fetch_layers(words: Words, ids: list[str], names: Path) -> Path:
    """Write the images of all ids into directories, as CRIU has them; that of the last."""
    wanted = [line.split() for line in names.read_text().splitlines()]
    for number, snapshot in enumerate(ids):
        directory = words.scratch / snapshot
        directory.mkdir()
        for name in [name for of, name in wanted if of == snapshot]:
            data = await words.remote.read(name, snapshot)
            assert data is not None, name
            (directory / name).write_bytes(data)
        if number:
            (directory / "parent").symlink_to(f"../{ids[number - 1]}")
    return words.scratch / ids[-1]


def main() -> int:
    words = Words(sys.argv[1:])
    match words.verb:
        case "dump":
            return trio.run(dump, words)
        case "predump":
            return trio.run(pre_dump, words)
        case "restore":
            restore(words)
        case "feed":
            trio.run(feed, words)
        case "finish":
            words.remote.finish_now()
    return 0


if __name__ == "__main__":
    sys.exit(main())
