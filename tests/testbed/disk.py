"""A folder that goes from place to place as if it were a disk that all of them have: its files keep their numbers.

A program may look whether a file that it has open is still the one at its path. sqlite3 does, by the inode's number,
and writes no more to a database that is another. A file system in memory counts its inodes as it makes them, so a new
one is filled in the order of the numbers, with files that are thrown away in between.
"""

import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.nodes import Node
from tests.testbed.guest import Guest

#: In a guest: an empty disk, with files of these numbers and names.
_FORMAT = """
mkdir -p "$0" && mount -t tmpfs disk "$0" && cd "$0" || exit 1
at=$(($(stat -c %i .) + 1))
while read -r number name; do
    while [ "$at" -lt "$number" ]; do : >".$at"; at=$((at + 1)); done
    : >"$name"
    at=$((at + 1))
done
rm -f .[0-9]*
stat -c '%i %n' *
"""


@dataclass(frozen=True)
class File:
    """One of its files."""

    number: int
    name: str
    data: bytes


class Disk:
    """It is at `folder`, in a node or in the guest."""

    def __init__(self, folder: Path, vm: Guest) -> None:
        self.folder, self._vm = folder, vm

    async def attach(self, node: Node, files: list[File]) -> None:
        """Have it in a node, with these files."""
        done = await node.run("mount", "-t", "tmpfs", "disk", self.folder)
        assert done.code == 0, done.output
        for file in sorted(files, key=lambda file: file.number):
            path = node.path(self.folder) / file.name
            path.touch(exist_ok=False)
            while path.stat().st_ino != file.number:
                assert path.stat().st_ino < file.number, f"{file.name} cannot have its number"
                path.unlink()
                path.touch()
            path.write_bytes(file.data)

    async def attach_there(self, files: list[File]) -> None:
        """Have it in the guest, with these files."""
        numbers = "".join(f"{file.number} {file.name}\n" for file in sorted(files, key=lambda file: file.number))
        done = await self._vm.run("sh", "-c", _FORMAT, self.folder, stdin=numbers.encode())
        assert sorted(done.stdout.splitlines()) == sorted(numbers.splitlines()), done.output
        for file in files:
            await self._vm.put(file.data, f"{self.folder}/{file.name}")

    def files(self, node: Node) -> list[File]:
        """What is on it, in a node."""
        return [File(path.stat().st_ino, path.name, path.read_bytes()) for path in node.path(self.folder).iterdir()]

    async def files_there(self) -> list[File]:
        """What is on it, in the guest."""
        told = await self._vm.run("sh", "-c", 'cd "$0" && stat -c "%i %n" *', self.folder)
        assert told.code == 0, told.output
        packed = await (command := await self._vm.start("tar", "-c", "-C", self.folder, ".")).wait()
        assert packed.code == 0, packed.stderr
        with io.BytesIO(command.output) as stream, tarfile.open(fileobj=stream) as archive:
            found = {Path(one.name).name: one for one in archive if one.isfile()}
            data = {name: taken.read() for name, one in found.items() if (taken := archive.extractfile(one))}
        numbers = [line.split(" ", 1) for line in told.stdout.splitlines()]
        return [File(int(number), name, data[name]) for number, name in numbers]

    async def detach(self, node: Node) -> None:
        """It is gone from a node."""
        done = await node.run("umount", self.folder)
        assert done.code == 0, done.output

    async def detach_there(self) -> None:
        """It is gone from the guest."""
        done = await self._vm.run("umount", self.folder)
        assert done.code == 0, done.output
