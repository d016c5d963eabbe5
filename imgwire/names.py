"""Names that come from the other side: of images and of sessions.

CRIU's image names have no directory part and end in `.img`; both sides turn them into paths, so everything
that reaches a path passes here first.
"""

import re
from functools import lru_cache

from imgwire.errors import RemoteProtocolError

#: NAME_MAX of every Linux file system; longer names could never be extracted to a directory.
MAX_NAME = 255
#: A session's directory holds a socket, whose path has at most 107 bytes: this leaves some to the directory above.
MAX_SESSION_NAME = 64
#: A session name that nobody chose: 20 bytes of the source's host name, a dash, 8 hex digits.
MAX_DEFAULT_SESSION_NAME = 29
#: A snapshot id is a path: PATH_MAX.
MAX_SNAPSHOT = 4096

#: The last image that a dump or pre-dump writes: without it neither is whole, and nothing can be restored.
LAST_IMAGE = "inventory.img"

_PRE_DUMP_KINDS = {"pagemap", "pagemap-shmem", "pages", "inventory", "irmap-cache", "stats-dump"}
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


def check_image_name(name: str) -> str:
    """Return `name` if it is a safe image name, else raise RemoteProtocolError."""
    return _check("image", name, MAX_NAME)


def check_session_name(name: str) -> str:
    """Return `name` if it can name a session (and its directory), else raise RemoteProtocolError."""
    return _check("session", name, MAX_SESSION_NAME)


def check_snapshot(snapshot: str) -> str:
    """Return `snapshot` if it can be the path of a directory, else raise RemoteProtocolError. It never becomes one."""
    if len(snapshot.encode()) > MAX_SNAPSHOT or "\0" in snapshot:
        raise RemoteProtocolError(f"a snapshot id of {len(snapshot)} characters that is no path")
    return snapshot


def is_pages(name: str) -> bool:
    """Whether the image holds raw page payload (`pages-1.img`): never parsed, moved by splice."""
    return name.startswith("pages-")


def is_of_pre_dump(name: str) -> bool:
    """Whether a pre-dump writes such an image. One that is not so tells a dump."""
    return image_kind(name) in _PRE_DUMP_KINDS


@lru_cache(maxsize=1024)
def image_kind(name: str) -> str:
    """The kind of an image, for statistics: `core-123.img` -> `core`, `tmpfs-dev-9.tar.gz.img` -> `tmpfs-dev`."""
    stem = name.partition(".")[0]
    return re.sub(r"(-[0-9]+)+$", "", stem) or stem


def _check(what: str, name: str, longest: int) -> str:
    if len(name) > longest:
        raise RemoteProtocolError(f"{what} name of {len(name)} bytes is longer than {longest}")
    if not _NAME.fullmatch(name):
        raise RemoteProtocolError(f"{what} name {name!r} is not made of letters, digits, '.', '_' and '-'")
    return name
