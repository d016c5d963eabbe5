"""Paths of open files moved from one prefix to another (`--map-path OLD:NEW`).

CRIU opens files again by the path in `files.img`: regular files, directories, the executable, mapped libraries, the
working directory and root of a task, removed files that were kept as ghosts or links (the other images refer to all
of these by id), bound UNIX sockets, inotify and fanotify watches. All of these are mapped; a prefix matches at the
border of a path component only. What is left alone: mount points (they describe the mount tree, which has options of
CRIU's own), external files (their name is a key), the text of symbolic links, and strings in a task's own memory, its
arguments included. On restore CRIU compares size, mode and build-id of a file with the dump's: they stay, so the file
at the new path must be the same file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message

from transform.chain import EndOfDump
from transform.errors import OptionError, TransformError
from transform.images.codec import decode
from transform.images.proto import files_pb2

PATH_LIMIT = 4095
"""Bytes of a path without its NUL: Linux's PATH_MAX."""
SOCKET_PATH_LIMIT = 107
"""Bytes of a UNIX socket's path without its NUL: sun_path of unix(7)."""
FILES = "files.img"


@dataclass(frozen=True, slots=True)
class Mapping:
    """One prefix and what replaces it; both absolute, without a slash at the end (so that `new` is empty for "/")."""

    old: bytes
    new: bytes

    @classmethod
    def parse(cls, value: str) -> "Mapping":
        """From "OLD:NEW"; `OptionError` says what is wrong with it."""
        old, colon, new = value.partition(":")
        if not colon or ":" in new:
            raise OptionError(f"--map-path {value}: give OLD:NEW, two absolute paths with one colon between")
        mapping = cls(_prefix(value, old), _prefix(value, new))
        if not mapping.old:
            raise OptionError(f"--map-path {value}: / cannot be moved; use CRIU's --root for another root")
        return mapping

    def apply(self, path: bytes) -> bytes | None:
        """The mapped path; None when the prefix is not one of `path`."""
        if path != self.old and not path.startswith(self.old + b"/"):
            return None
        return self.new + path[len(self.old) :] or b"/"

    def __str__(self) -> str:
        return f"{self.old.decode(errors='backslashreplace')}:{(self.new or b'/').decode(errors='backslashreplace')}"


def _prefix(value: str, path: str) -> bytes:
    parts = path.split("/")
    if parts[0] or len(parts) < 2:
        raise OptionError(f"--map-path {value}: {path or 'the empty path'} is not absolute; begin it with /")
    inner = parts[1:-1] if parts[-1] == "" else parts[1:]
    if not {"", ".", ".."}.isdisjoint(inner) or "\0" in path:
        raise OptionError(f"--map-path {value}: write {path} without //, . and ..")
    return "".join("/" + part for part in inner).encode(errors="surrogateescape")


class PathMap:
    """Rewrites `files.img`; the longest prefix wins where several match, and no path is mapped twice."""

    name = "path map"
    needs_memory = False

    def __init__(self, mappings: Sequence[Mapping]) -> None:
        """`OptionError` when one prefix is given two new places."""
        self._mappings = sorted(mappings, key=lambda mapping: len(mapping.old), reverse=True)
        self._matched: set[Mapping] = set()
        for first, second in zip(self._mappings, self._mappings[1:], strict=False):
            if first.old == second.old:
                raise OptionError(f"--map-path {second}: {first} is given as well; give each prefix once")

    @property
    def unmatched(self) -> tuple[str, ...]:
        """The mappings that no path of the dump had."""
        return tuple(str(mapping) for mapping in self._mappings if mapping not in self._matched)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(f"--map-path {mapping}: matched nothing in this dump" for mapping in self.unmatched)

    def wants(self, image: str) -> bool:
        return image == FILES

    def transform(self, image: str, data: bytes) -> bytes:
        """`TransformError` when a new path is too long for the kernel, or when no mapping matched at all."""
        decoded = decode(image, data)
        for file in decoded.messages(files_pb2.File):
            self._map_file(file)
        self._require_match()
        return decoded.encode()

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        """Nothing was held; a dump that had no files.img is refused."""
        del dump
        self._require_match()
        return {}

    def _require_match(self) -> None:
        if not self._matched:
            asked = ", ".join(self.unmatched)
            raise TransformError(f"{FILES}: no open file, directory or socket lies under any OLD of --map-path {asked}")

    def _map_file(self, file: files_pb2.File) -> None:
        if file.HasField("reg") and not file.reg.ext:
            self._map_field(file.reg, "name", PATH_LIMIT)
        if file.HasField("usk"):
            self._map_socket(file.usk)
        for handle in _watched(file):
            self._map_field(handle, "path", PATH_LIMIT)

    def _map_socket(self, socket: files_pb2.UnixSocket) -> None:
        if socket.HasField("name_dir"):
            self._map_field(socket, "name_dir", PATH_LIMIT)
        if socket.name.startswith(b"/"):
            path = socket.name.rstrip(b"\0")
            new = self._map(path, SOCKET_PATH_LIMIT)
            if new != path:
                socket.name = new + socket.name[len(path) :]

    def _map_field(self, message: Message, name: str, limit: int) -> None:
        path: bytes = getattr(message, name)
        new = self._map(path, limit)
        if new != path:
            setattr(message, name, new)

    def _map(self, path: bytes, limit: int) -> bytes:
        for mapping in self._mappings:
            new = mapping.apply(path)
            if new is None:
                continue
            if len(new) > limit:
                shown = new.decode(errors="backslashreplace")
                raise TransformError(f"{FILES}: --map-path {mapping}: {shown} has {len(new)} bytes, {limit} fit")
            self._matched.add(mapping)
            return new
        return path


def _watched(file: files_pb2.File) -> Iterator[Message]:
    """The messages of inotify and fanotify watches that have a `path`."""
    messages: list[Message] = [watch.f_handle for watch in file.ify.wd]
    for mark in file.ffy.mark:
        messages += [mark.ie.f_handle, mark.me]
    return (message for message in messages if message.HasField("path"))
