"""The kinds of CRIU images: their magic numbers, the type of their entries, what raw bytes follow an entry.

Facts from CRIU's image descriptions (criu/include/magic.h, criu/image-desc.c, images/*.proto of versions 4.1
and 4.2). A kind whose fields we do not read has entries of type `Untyped`: all of their fields are unknown and
pass through. Images that carry no magic (page contents, dumps by `ip` and `iptables`, archives) are known by name.
"""

import re
from dataclasses import dataclass

from google.protobuf.message import Message

from transform.images import payload
from transform.images.proto import files_pb2, memory_pb2, payload_pb2, system_pb2, task_pb2

COMMON_MAGIC = 0x54564319
SERVICE_MAGIC = 0x55105940

_RAW_NAME = re.compile(
    r"(pages-.*|ifaddr-\d+|route6?-\d+|rule-\d+|ip6?tables-\d+|nftables-\d+|netns-(ct|exp)-\d+|tmpfs-.*\.tar\.gz)\.img"
)


@dataclass(frozen=True, slots=True)
class Kind:
    """What an image with a certain magic holds.

    `entry` is the message type of its entries and `head` that of the first one where it differs;
    `payload_end` finds the end of the raw bytes after an entry, None where none follow.
    """

    name: str
    magic: int
    entry: type[Message] = payload_pb2.Untyped
    head: type[Message] | None = None
    payload_end: payload.PayloadEnd | None = None


KINDS = (
    Kind("inventory", 0x58313116, task_pb2.Inventory),
    Kind("pstree", 0x50273030, task_pb2.PstreeEntry),
    Kind("fdinfo", 0x56213732, task_pb2.FdinfoEntry),
    Kind("pagemap", 0x56084025, memory_pb2.PagemapEntry, head=memory_pb2.PagemapHead),
    Kind("core", 0x55053847, task_pb2.Core),
    Kind("ids", 0x54432030, task_pb2.Ids),
    Kind("fs", 0x51403912, task_pb2.Fs),
    Kind("mm", 0x57492820, memory_pb2.Mm),
    Kind("vmas", 0x54123737, memory_pb2.Vma),
    Kind("files", 0x56303138, files_pb2.File),
    Kind("reg-files", 0x50363636, files_pb2.RegFile),
    Kind("pipes", 0x56513555, files_pb2.Pipe),
    Kind("fifo", 0x58364939, files_pb2.Fifo),
    Kind("unixsk", 0x54373943, files_pb2.UnixSocket),
    Kind("inetsk", 0x56443851, files_pb2.InetSocket),
    Kind("remap-fpath", 0x59133954, files_pb2.RemapFilePath),
    Kind("ghost-file", 0x52583605, files_pb2.GhostFile, payload_end=payload.rest),
    Kind("memfd", 0x48453499, memory_pb2.MemfdInode),
    Kind("mountpoints", 0x55563928, system_pb2.Mount),
    Kind("tty", 0x59433025, files_pb2.TtyFile),
    Kind("tty-info", 0x59453036, system_pb2.TtyInfo),
    Kind("tty-data", 0x59413026, system_pb2.TtyData),
    Kind("pipes-data", 0x56453709, payload_pb2.PipeData, payload_end=payload.pipe_data),
    Kind("fifo-data", 0x59333054, payload_pb2.PipeData, payload_end=payload.pipe_data),
    Kind("sk-queues", 0x56264026, payload_pb2.SocketPacket, payload_end=payload.socket_packet),
    Kind("tcp-stream", 0x51465506, payload_pb2.TcpStream, payload_end=payload.tcp_stream),
    Kind("ipcns-shm", 0x46283044, payload_pb2.SharedMemorySegment, payload_end=payload.shared_memory),
    Kind("ipcns-msg", 0x55453737, payload_pb2.MessageQueue, payload_end=payload.message_queue),
    Kind("ipcns-sem", 0x59573019, payload_pb2.SemaphoreSet, payload_end=payload.semaphores),
    Kind("bpfmap-data", 0x64324033, payload_pb2.BpfMapData, payload_end=payload.bpf_map),
    Kind("sigacts", 0x55344201),
    Kind("packetsk", 0x60454618),
    Kind("itimers", 0x57464056),
    Kind("posix-timers", 0x52603957),
    Kind("utsns", 0x54473203),
    Kind("creds", 0x54023547),
    Kind("ipcns-var", 0x53115007),
    Kind("ext-files", 0x59255641),
    Kind("eventfd", 0x44523722),
    Kind("eventpoll", 0x45023858),
    Kind("eventpoll-tfd", 0x44433746),
    Kind("signalfd", 0x57323820),
    Kind("inotify", 0x48424431),
    Kind("inotify-wd", 0x54562009),
    Kind("netdev", 0x57373951),
    Kind("netns", 0x55933752),
    Kind("filelocks", 0x54323616),
    Kind("rlimit", 0x57113925),
    Kind("fanotify", 0x55096122),
    Kind("fanotify-mark", 0x56506035),
    Kind("signal", 0x59255647),
    Kind("netlinksk", 0x58005614),
    Kind("ns-files", 0x61394011),
    Kind("tunfile", 0x57143751),
    Kind("cgroup", 0x59383330),
    Kind("timerfd", 0x50493712),
    Kind("cpuinfo", 0x61404013),
    Kind("userns", 0x55474906),
    Kind("seccomp", 0x64413049),
    Kind("binfmt-misc", 0x67343323),
    Kind("autofs", 0x49353943),
    Kind("timens", 0x43114433),
    Kind("pidns", 0x61157326),
    Kind("bpfmap-file", 0x57506142),
    Kind("apparmor", 0x59423047),
    Kind("pidfd", 0x54435556),
    Kind("stats", 0x57093306),
    Kind("irmap-cache", 0x57004059),
)

BY_MAGIC = {kind.magic: kind for kind in KINDS}


def is_raw(name: str) -> bool:
    """Whether images of this name are bytes without magic and entries."""
    return _RAW_NAME.fullmatch(name) is not None
