"""A `criu` with the original's `--remote`, made of a real CRIU that writes and reads files and of the fake client.

`python -m tests.original_criu dump --remote -D s3 -t 77 [--action-script X]`: the real dump goes to a directory of its
own; when its files are written, inside the real post-dump script with the tasks frozen, they are played to the proxy as
the original client plays them, then X is run. A restore reads the images from the cache into a directory, and the real
CRIU takes them from there. So what is moved is real, and what is said on the sockets is recorded. A pre-dump here plays
the memory of a dump that left the process running: all of it, as the unmodified client does.

The environment tells the real one (`REAL_CRIU`), and the variant (`REMOTE_VARIANT`, pipe by default).
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from tests.fake_remote_criu import CACHE, PROXY, RemoteCriu, given

ROOT = Path(__file__).resolve().parent.parent
MEMORY = ("pagemap-", "pages-", "inventory")
LAST = "inventory.img"
#: Images without a number that a restore asks for.
SINGLE = ("inventory", "pstree", "files", "seccomp", "cgroup", "timens-0", "tty-info", "tty-data", "memfd", "filelocks")
#: ... and those with one, of the first few numbers or of a pid.
NUMBERED = ("fdinfo", "pages", "ids", "core", "mm", "fs", "pagemap", "pagemap-shmem", "timens", "signal")
NUMBERS = range(1, 40)


def main(words: Sequence[str]) -> None:
    """Be CRIU: become the real one, or play what it has written."""
    {"pre-dump": pre_dump, "dump": dump, "restore": restore, "play": play}[words[0]](words)


def client(words: Sequence[str], side: str = PROXY) -> RemoteCriu:
    """The sockets' directory and the id are both what -D says; the second word for word."""
    directory = given(words, "-D", "--images-dir")[-1]
    return RemoteCriu(side, Path(directory), directory, os.environ.get("REMOTE_VARIANT", "pipe"))


def real(action: str, directory: Path, *options: object) -> list[str]:
    """A command line of the real CRIU."""
    return [os.environ["REAL_CRIU"], action, "-D", str(directory), "-o", "log", *map(str, options)]


def pre_dump(words: Sequence[str]) -> None:
    """All memory of the process, which goes on."""
    criu = client(words)
    criu.push_now()
    trio.run(criu.ids)
    with tempfile.TemporaryDirectory(prefix="original-criu-") as directory:
        command = real("dump", Path(directory), "-t", given(words, "-t")[-1], "--leave-running")
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        trio.run(_write, criu, [path for path in images(Path(directory)) if path.name.startswith(MEMORY)])


def dump(words: Sequence[str]) -> None:
    """Become the real dump, with an action script that comes back to `play`."""
    criu = client(words)
    criu.push_now()
    trio.run(criu.ids)
    directory = Path(tempfile.mkdtemp(prefix="original-criu-"))
    script = directory / "action-script"
    scripts = " ".join(str(Path(one).absolute()) for one in given(words, "--action-script"))
    played = f"{sys.executable} -m tests.original_criu play -D '{criu.snapshot}' {directory} || exit 1"
    place = f"cd '{Path.cwd()}' && export PYTHONPATH={ROOT}"
    script.write_text(
        f'#!/bin/sh\n{place}\n[ "$CRTOOLS_SCRIPT_ACTION" != post-dump ] || {played}\n'
        f"for one in {scripts}; do $one || exit 1; done\n"
    )
    script.chmod(0o700)
    os.execv(os.environ["REAL_CRIU"], real("dump", directory, "-t", given(words, "-t")[-1], "--action-script", script))


def play(words: Sequence[str]) -> None:
    """Write the images of a real dump to the proxy."""
    trio.run(_write, client(words), list(images(Path(words[-1]))))


def restore(words: Sequence[str]) -> None:
    """Read the images from the cache, then become the real restore."""
    directory = Path(tempfile.mkdtemp(prefix="original-criu-"))
    trio.run(_read, client(words, CACHE), directory)
    scripts = [word for one in given(words, "--action-script") for word in ("--action-script", Path(one).absolute())]
    os.execv(os.environ["REAL_CRIU"], real("restore", directory, "-d", *scripts))


def images(directory: Path) -> Iterator[Path]:
    """Those of a dump, the inventory last; no statistics, which never leave their node."""
    found = [path for path in directory.glob("*.img") if not path.name.startswith("stats-")]
    yield from sorted(found, key=lambda path: (path.name == LAST, path.name))


async def _write(criu: RemoteCriu, paths: Sequence[Path]) -> None:
    for path in paths:
        await criu.image(path.name, path.read_bytes())


async def _read(criu: RemoteCriu, directory: Path) -> None:
    """Like the client: the list first, then image by image, of which many are not there."""
    assert criu.snapshot in await criu.ids()
    names = [f"{name}.img" for name in SINGLE] + [f"{name}-{number}.img" for name in NUMBERED for number in NUMBERS]
    for name in names:
        await _fetch(criu, directory, name)
    for pid in _pids(directory):
        for name in NUMBERED:
            await _fetch(criu, directory, f"{name}-{pid}.img")


async def _fetch(criu: RemoteCriu, directory: Path, name: str) -> None:
    data = await criu.read(name)
    if data is not None:
        (directory / name).write_bytes(data)


def _pids(directory: Path) -> list[int]:
    """Of the tasks and their threads: field 1 and 4 of each entry of pstree.img, by hand."""
    raw = (directory / "pstree.img").read_bytes()[8:]
    found: list[int] = []
    while raw:
        size = int.from_bytes(raw[:4], "little")
        entry, raw = raw[4 : 4 + size], raw[4 + size :]
        fields = list(_fields(entry))
        found += [value for number, value in fields if number in (1, 5)]
    return found


def _fields(entry: bytes) -> Iterator[tuple[int, int]]:
    numbers = list(_varints(entry))
    yield from zip((tag >> 3 for tag in numbers[::2]), numbers[1::2], strict=False)


def _varints(raw: bytes) -> Iterator[int]:
    value = shift = 0
    for byte in raw:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            yield value
            value = shift = 0


if __name__ == "__main__":
    main(sys.argv[1:])
