"""Who is at the other end of a TCP connection that never leaves the machine.

Over loopback no certificate is asked for, but any local user can connect, or listen. The kernel's table of sockets
tells the owner of the other end (proc_net_tcp(5)), as SO_PEERCRED does for UNIX sockets.
"""

import ipaddress
import os
import socket
import struct
from pathlib import Path
from typing import NamedTuple

import trio

_TABLES = {socket.AF_INET: "/proc/self/net/tcp", socket.AF_INET6: "/proc/self/net/tcp6"}


class LocalPeer(NamedTuple):
    """A socket of this machine."""

    uid: int  #: its owner
    inode: int  #: by which the process is found that holds it; 0 if that has closed it


def is_trusted(sock: trio.socket.SocketType) -> bool:
    """Whether the peer of a connection over loopback is root or this user. True for one from another machine."""
    address, port = sock.getpeername()[:2]
    if not _is_loopback(address):
        return True
    peer = _listed(sock.family, (address, port), sock.getsockname()[:2])
    return peer is not None and peer.uid in (0, os.geteuid())


def local_peer(sock: trio.socket.SocketType) -> LocalPeer | None:
    """The other end of a connection that comes from this machine; None if the kernel lists none such (any more)."""
    return _listed(sock.family, sock.getpeername()[:2], sock.getsockname()[:2])


def _is_loopback(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None)
    return (mapped or parsed).is_loopback


def _listed(family: int, local: tuple[str, int], remote: tuple[str, int]) -> LocalPeer | None:
    """The socket with these ends; None if the kernel lists none such."""
    ends = [_coded(family, *local), _coded(family, *remote)]
    for path in _TABLES.values():  # an IPv4 peer of an IPv6 socket is in the other table
        for line in Path(path).read_text().splitlines()[1:]:
            fields = line.split()
            if [_tail(end) for end in fields[1:3]] == [_tail(end) for end in ends]:
                return LocalPeer(int(fields[7]), int(fields[9]))
    return None


def _coded(family: int, address: str, port: int) -> str:
    """As the kernel prints it: 32-bit words of the address in the machine's byte order, and the port."""
    raw = socket.inet_pton(family, address.partition("%")[0])
    words = struct.unpack(f"={len(raw) // 4}I", raw)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"


def _tail(end: str) -> str:
    """The last word of the address and the port: the same for an IPv4 address and its IPv6 form."""
    return end[-13:]
