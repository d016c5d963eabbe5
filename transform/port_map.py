"""Ports of listening TCP sockets (`--tcp-listen-remap OLD:NEW`), IPv4 and IPv6.

Every listening socket of the port is moved, so both of a dual-stack pair and all of a SO_REUSEPORT group. Connections
that were accepted from it keep the old port: it is part of what their peer knows them by, and they restore beside a
listener on another port. (criu-image-streamer's option of this name leaves them as well.) Sockets that are bound but do
not listen, UDP among them, keep theirs.
"""

import re
from collections.abc import Sequence

from transform.chain import EndOfDump
from transform.errors import OptionError, TransformError
from transform.images.codec import decode
from transform.images.proto import files_pb2

IPPROTO_TCP = 6
TCP_LISTEN = 10
"""State of a listening socket, as in the kernel's net/tcp_states.h."""
PORT_LIMIT = 65535
FILES = "files.img"
_DECIMAL = re.compile(r"[0-9]{1,5}")


def parse_port_maps(values: Sequence[str]) -> dict[int, int]:
    """Old port to new, from "OLD:NEW" or several with commas between; `OptionError` says what is wrong."""
    ports: dict[int, int] = {}
    for pair in (pair for value in values for pair in value.split(",")):
        old, new = _ports(pair)
        if old in ports:
            raise OptionError(f"--tcp-listen-remap {pair}: port {old} is given a new port already; give each once")
        ports[old] = new
    return ports


def _ports(pair: str) -> tuple[int, int]:
    numbers = pair.split(":")
    if len(numbers) != 2 or not all(_DECIMAL.fullmatch(number) for number in numbers):
        raise OptionError(f"--tcp-listen-remap {pair}: give OLD:NEW, two port numbers")
    old, new = map(int, numbers)
    if not (0 < old <= PORT_LIMIT and 0 < new <= PORT_LIMIT):
        raise OptionError(f"--tcp-listen-remap {pair}: ports are 1 to {PORT_LIMIT}")
    return old, new


class PortMap:
    """Rewrites `files.img`; every old port must have a listening socket."""

    name = "port map"
    needs_memory = False
    warnings = ()

    def __init__(self, ports: dict[int, int]) -> None:
        self._ports = ports
        self._matched: set[int] = set()
        self._listening: set[int] = set()

    @property
    def unmatched(self) -> tuple[str, ...]:
        return tuple(f"{old}:{new}" for old, new in self._ports.items() if old not in self._matched)

    def wants(self, image: str) -> bool:
        return image == FILES

    def transform(self, image: str, data: bytes) -> bytes:
        """`TransformError` when a port to be moved is listened on by nobody."""
        decoded = decode(image, data)
        for file in decoded.messages(files_pb2.File):
            if file.isk.proto == IPPROTO_TCP and file.isk.state == TCP_LISTEN:
                self._move(file.isk)
        self._require_match()
        return decoded.encode()

    def finish(self, dump: EndOfDump) -> dict[str, bytes]:
        """Nothing was held; a dump that had no files.img is refused."""
        del dump
        self._require_match()
        return {}

    def _move(self, socket: files_pb2.InetSocket) -> None:
        old = socket.src_port
        self._listening.add(old)
        if old in self._ports:
            self._matched.add(old)
            socket.src_port = self._ports[old]

    def _require_match(self) -> None:
        if self.unmatched:
            there = ", ".join(map(str, sorted(self._listening))) or "none"
            asked = ", ".join(self.unmatched)
            raise TransformError(f"{FILES}: --tcp-listen-remap {asked}: nothing listens there (ports that do: {there})")
