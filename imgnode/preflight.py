"""What can be found out before anything is frozen, and the reasons that it gives for not starting.

Each node gathers facts about itself; they cross the link as a plain dict; the source compares the two and
refuses with one line for each problem. The directories that CRIU's sockets go into are checked here too. What
CRIU alone can judge (the CPU's state, each option's effect) is asked of it in `imgnode.criu`.
"""

import os
import platform
import re
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import trio

from imgnode.criu import FIRST_WIDE_COUNTS, OLDEST_STREAM, Criu, CriuError, parse_version
from imgwire.errors import RemoteProtocolError, UsageError
from imgwire.names import MAX_DEFAULT_SESSION_NAME

MAX_FEATURES = 2000
"""CPU features in one node's facts; the longest list known, of a current x86, has under 200."""

MAX_TEXT = 4096
"""Characters in any text of a node's facts."""

SUN_PATH = 108
"""Bytes of a UNIX socket's address, the closing NUL included (unix(7))."""

SOCKET_NAMES = ("streamer-capture.sock", "streamer-serve.sock")
"""The sockets in an images directory; their names are CRIU's."""

SESSION_SOCKET = f"{'x' * MAX_DEFAULT_SESSION_NAME}/streamer-serve.sock"
"""The longest socket of a session whose name nobody chose, in the images directory of a cache."""

_USER_FEATURES = re.compile(
    r"adx|aes|amx_\w+|apx|avx\w*|bmi[12]|cmov|cx16|cx8|f16c|fma\w*|fsgsbase|fxsr|gfni|lahf_lm|lzcnt|abm|mmx|movbe|"
    r"movdir\w+|pclmulqdq|pku|popcnt|rdpid|rdrand|rdseed|rdtscp|sha_ni|sha512|sm[34]|sse\w*|pni|ssse3|vaes|vpclmulqdq|"
    r"xsave\w*|user_shstk"
)
"""x86 features that a program can have chosen code by; the other flags concern the kernel (names of
/proc/cpuinfo).
"""


@dataclass(frozen=True)
class NodeFacts:
    """One node as it is now. Sizes are bytes."""

    arch: str
    """platform.machine(), such as x86_64."""
    kernel: str
    page_size: int
    criu: str | None
    """The version, such as 4.2; None if there is no usable CRIU, and then `criu_reason` says why."""
    criu_reason: str
    cpu_vendor: str
    cpu_features: tuple[str, ...] | None
    """What programs may rely on in the CPU, sorted; None to leave it unchecked."""
    free_memory: int
    """MemAvailable."""
    free_spool: int | None
    """Free bytes where images may be spooled; None without a spool."""
    image_memory: int | None
    """Bytes that the cache's memory limit leaves for images; None without a limit."""
    releases_as_read: bool
    """Whether images leave the cache's memory as the restore reads them (--release read)."""
    restore_allowed: bool
    """Whether the cache runs `criu restore` when a source asks it to."""
    uid: int

    def to_dict(self) -> dict[str, object]:
        """For the wire: only texts, integers, booleans, None and a list."""
        features = None if self.cpu_features is None else list(self.cpu_features)
        return {**asdict(self), "cpu_features": features}

    @classmethod
    def from_dict(cls, facts: Mapping[str, object]) -> "NodeFacts":
        """From what the peer sent; it may know more facts.

        RemoteProtocolError for a missing one or a wrong type.
        """
        values: dict[str, Any] = {}
        for one in fields(cls):
            value = facts.get(one.name, _MISSING)
            if not _FIT[one.name](value):
                raise RemoteProtocolError(f"the peer's facts about its node hold no valid {one.name}")
            values[one.name] = tuple(value) if isinstance(value, (list, tuple)) else value
        return cls(**values)


_MISSING = object()


def _text(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()


def _size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _features(value: object) -> bool:
    return isinstance(value, (list, tuple)) and len(value) <= MAX_FEATURES and all(map(_text, value))


_FIT = {
    "arch": _text,
    "kernel": _text,
    "page_size": _size,
    "criu": lambda value: value is None or (_text(value) and _is_version(value)),
    "criu_reason": _text,
    "cpu_vendor": _text,
    "cpu_features": lambda value: value is None or _features(value),
    "free_memory": _size,
    "free_spool": lambda value: value is None or _size(value),
    "image_memory": lambda value: value is None or _size(value),
    "releases_as_read": lambda value: isinstance(value, bool),
    "restore_allowed": lambda value: isinstance(value, bool),
    "uid": _size,
}
"""What each fact must be: the other node is not trusted to send it right."""


def _is_version(value: object) -> bool:
    return re.fullmatch(r"\d{1,4}\.\d{1,4}(\.\d{1,4})?", str(value)) is not None


async def gather(
    criu: Criu,
    spool: Path | None = None,
    *,
    restore_allowed: bool = False,
    releases_as_read: bool = False,
    image_memory: int | None = None,
    check_cpu: bool = True,
) -> NodeFacts:
    """This node's facts. No CRIU is a fact, not an error; OSError if `spool` cannot be looked at."""
    version, reason = await _criu_version(criu)
    cpuinfo = await trio.Path("/proc/cpuinfo").read_text("utf-8", "replace")
    vendor, features = cpu_facts(cpuinfo)
    return NodeFacts(
        arch=platform.machine(),
        kernel=platform.release(),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        criu=version,
        criu_reason=reason,
        cpu_vendor=vendor,
        cpu_features=features if check_cpu else None,
        free_memory=await free_memory(),
        free_spool=None if spool is None else await trio.to_thread.run_sync(_free_space, spool),
        image_memory=image_memory,
        releases_as_read=releases_as_read,
        restore_allowed=restore_allowed,
        uid=os.geteuid(),
    )


async def _criu_version(criu: Criu) -> tuple[str | None, str]:
    try:
        return str(await criu.version()), ""
    except (CriuError, UsageError) as error:
        return None, str(error)


def cpu_facts(cpuinfo: str) -> tuple[str, tuple[str, ...]]:
    """The vendor and the features, sorted, that a text such as /proc/cpuinfo gives for its first CPU."""
    found: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    vendor = found.get("vendor_id") or found.get("CPU implementer", "")
    if "flags" in found:
        return vendor, tuple(sorted(flag for flag in found["flags"].split() if _USER_FEATURES.fullmatch(flag)))
    return vendor, tuple(sorted(found.get("Features", "").split()))


async def free_memory() -> int:
    """Bytes of memory that can be used here."""
    for line in (await trio.Path("/proc/meminfo").read_text("ascii")).splitlines():
        name, _, value = line.partition(":")
        if name == "MemAvailable":
            return int(value.split()[0]) * 1024
    raise OSError("/proc/meminfo: no MemAvailable in it")


def _free_space(path: Path) -> int:
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def problems(
    source: NodeFacts, destination: NodeFacts, need_bytes: int, *, need_restore: bool = True, arch: str = ""
) -> list[str]:
    """Why a process with `need_bytes` of pages cannot go from one node to the other: a line each, empty if it
    can.

    `need_restore`: the cache itself is asked to run the restore, rather than somebody who will call CRIU
    there. `arch`: the ISA that the process changes to, "" if it stays what it is.
    """
    found = [*_criu_problems(source, "source"), *_criu_problems(destination, "destination")]
    found += machine_problems(source, destination, arch)
    found += _space_problems(destination, need_bytes)
    if need_restore and not destination.restore_allowed:
        found.append(
            "destination: its cache runs no restores for others: start imgcache with --allow-restore, "
            "or run criu restore there yourself"
        )
    return found


def restores_with_old_criu(node: NodeFacts) -> bool:
    """Whether its CRIU looks for the counts of pages where CRIU since 4.2 leaves zeroes."""
    return node.criu is not None and parse_version(f"Version: {node.criu}") < FIRST_WIDE_COUNTS


def has_room_for_rounds(destination: NodeFacts, need_bytes: int) -> bool:
    """Whether the cache can hold two checkpoints of `need_bytes`: while a round comes in, the one before is kept."""
    spool = destination.free_spool or 0
    may_keep = None if destination.image_memory is None else destination.image_memory + spool
    return (may_keep is None or may_keep >= 2 * need_bytes) and destination.free_memory + spool >= 2 * need_bytes


def _criu_problems(node: NodeFacts, where: str) -> list[str]:
    if node.criu is None:
        return [f"{where}: no usable CRIU ({node.criu_reason}): install CRIU {OLDEST_STREAM} or newer there"]
    if parse_version(f"Version: {node.criu}") < OLDEST_STREAM:
        return [f"{where}: CRIU {node.criu} has no --stream: install CRIU {OLDEST_STREAM} or newer there"]
    return []


def machine_problems(source: NodeFacts, destination: NodeFacts, arch: str = "") -> list[str]:
    """Why a process of one machine cannot run on the other, whoever moves it. `arch`: as in `problems`."""
    found = _arch_problems(source.arch, destination.arch, arch.replace("-", "_"))
    if found:
        return found
    if source.page_size != destination.page_size:
        found.append(
            f"destination: its pages have {destination.page_size} bytes, the source's {source.page_size}: "
            "choose a node whose kernel has the same"
        )
    if arch and source.page_size != 4096:
        found.append(f"source: its pages have {source.page_size} bytes: the ISA can change with pages of 4096 only")
    if not arch and source.cpu_features is not None and destination.cpu_features is not None:
        missing = sorted(set(source.cpu_features) - set(destination.cpu_features))
        if missing:
            found.append(
                f"destination: its CPU lacks {' '.join(missing)}, which the process may use: "
                "choose a node that has them"
            )
    return found


def _arch_problems(source: str, destination: str, wanted: str) -> list[str]:
    if source == destination:
        if wanted:
            return [f"destination: it is {destination}, as the source is: leave --arch out, or choose another node"]
    elif not wanted:
        return [
            f"destination: it is {destination}, the source {source}: choose a node of the same kind, or change the ISA "
            "with --arch"
        ]
    elif wanted != destination:
        return [f"destination: it is {destination}, not {wanted}, which --arch names: choose a node of that kind"]
    return []


def _space_problems(destination: NodeFacts, need_bytes: int) -> list[str]:
    """The process needs memory there; so do its images until it runs, or spool, unless they go as they are read.

    All of them must fit what the cache may keep: no restore begins before they are complete.
    """
    if destination.free_memory < need_bytes:
        return [
            f"destination: {_mib(destination.free_memory)} MiB of memory are free and the process needs "
            f"{_mib(need_bytes)}: make room there, or choose another node"
        ]
    may_keep = None if destination.image_memory is None else destination.image_memory + (destination.free_spool or 0)
    if may_keep is not None and may_keep < need_bytes:
        return [
            f"destination: its cache's memory limit and spool leave {may_keep >> 20} MiB and the images need "
            f"{_mib(need_bytes)}: start imgcache there with a higher --memory-limit or --spool DIR"
        ]
    for_images = destination.free_memory - need_bytes + (destination.free_spool or 0)
    if for_images < need_bytes and not destination.releases_as_read:
        return [
            f"destination: beside the process, {_mib(for_images)} MiB of memory and spool are free and its images need "
            f"{_mib(need_bytes)}: start imgcache there with --spool DIR or --release read"
        ]
    return []


def _mib(size: int) -> int:
    return -(-size // 2**20)


def check_images_dir(path: Path, *, sessions: bool = False) -> None:
    """Whether our sockets and CRIU can work in `path`; `sessions`: it is a cache's, and sessions have theirs below it.

    UsageError says what is wrong with it.
    """
    status = _directory_status(path)
    if status.st_uid != os.geteuid():
        raise UsageError(
            f"images directory {path}: it belongs to uid {status.st_uid}, not to {os.geteuid()}: use one of your own"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(f"images directory {path}: others may write to it: chmod go-w {path}")
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK, effective_ids=True):
        raise UsageError(f"images directory {path}: it cannot be written to: name another, or chmod u+rwx {path}")
    _check_length(path, sessions=sessions)
    if os.path.lexists(path / "parent"):
        raise UsageError(f"images directory {path}: it holds `parent`, with which CRIU cannot stream: name another")


def _check_length(path: Path, *, sessions: bool) -> None:
    """A longer name that somebody chooses for a session is refused when it comes, with the session."""
    names = (*SOCKET_NAMES, SESSION_SOCKET) if sessions else SOCKET_NAMES
    most = SUN_PATH - 1 - max(map(len, names)) - 1
    size = len(os.fsencode(path.absolute()))
    if size > most:
        problem = "too long for the socket of a session in it" if sessions else "too long for a socket in it"
        raise UsageError(f"images directory {path}: its path has {size} bytes, {problem}: name one with at most {most}")


def _directory_status(path: Path) -> os.stat_result:
    try:
        status = path.stat()
    except OSError as error:
        raise UsageError(f"images directory {path}: {error.strerror}: make it, or name another") from error
    if not stat.S_ISDIR(status.st_mode):
        raise UsageError(f"images directory {path}: it is no directory: name one")
    return status
