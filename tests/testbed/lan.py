"""A network of a node, a guest or another node, and a caller's node, on which an address can move.

    async with open_nodes(programs, make_node_dir) as nodes:
        lan = await Lan.lay(nodes)
        with lan.cable() as fd:
            async with guest("arm64", Hardware(lan=fd)) as vm:
                await lan.join(vm)

All have the device that goes there under one name. The node's is a bridge, with a cable to the caller's node and one
that ends in a descriptor, which QEMU takes. All of it is in the network namespaces of nodes: nothing can be seen on the
machine, and all of it ends with them.
"""

import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from tests.nodes import Node, Nodes
from tests.testbed.guest import PLACES, Guest

#: The device on both, the addresses that stay, and the one that moves.
DEVICE = "net0"
HERE, THERE, MOVES = "10.77.0.201", "10.77.0.202", "10.77.0.100"

_PLUGGED_IN = (f"address add {THERE}/24 dev {DEVICE}", f"link set {DEVICE} up")
_TUN = Path("/dev/net/tun")
_CABLE = "cable0"
#: linux/if_tun.h, linux/sched.h
_TUNSETIFF, _IFF_TAP, _IFF_NO_PI, _CLONE_NEWNET = 0x400454CA, 0x0002, 0x1000, 0x40000000

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Lan:
    """`node` has the address that moves, to begin with; who calls it is on `caller`."""

    node: Node
    caller: Node

    @classmethod
    async def lay(cls, nodes: Nodes) -> "Lan":
        """Two nodes, and what is between them."""
        lan = cls(await nodes.make(network=True), await nodes.make(network=True))
        await nodes.join(lan.node, lan.caller)
        for words in (
            f"link add {DEVICE} type bridge",
            f"link set eth0 master {DEVICE}",
            "address flush dev eth0",
            f"address add {HERE}/24 dev {DEVICE}",
            f"address add {MOVES}/32 dev {DEVICE}",
            f"link set {DEVICE} up",
        ):
            await _succeed(lan.node, "ip", *words.split())
        _equip(lan.node, nodes.make_node_dir())
        return lan

    async def another(self, nodes: Nodes) -> Node:
        """A node that is on it, too."""
        node = await nodes.make(network=True)
        _equip(node, nodes.make_node_dir())
        cable = f"link add {_CABLE} netns {self.node.init} type veth peer name {DEVICE} netns {node.init}"
        await trio.run_process(["ip", *cable.split()])
        await _succeed(self.node, "ip", "link", "set", _CABLE, "master", DEVICE, "up")
        for words in _PLUGGED_IN:
            await _succeed(node, "ip", *words.split())
        return node

    @contextmanager
    def cable(self) -> Iterator[int]:
        """The other end of a device that is on the bridge."""
        assert _TUN.exists(), f"{_TUN} is missing: a guest can be on no network here"
        with _in_network_of(self.node):
            fd = os.open(_TUN, os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", _CABLE.encode(), _IFF_TAP | _IFF_NO_PI))
        try:
            yield fd
        finally:
            os.close(fd)

    async def join(self, vm: Guest) -> None:
        """Put a guest onto it that has the cable."""
        await _succeed(self.node, "ip", "link", "set", _CABLE, "master", DEVICE, "up")
        for words in (f"link set eth1 name {DEVICE}", *_PLUGGED_IN):
            done = await vm.run("ip", *words.split())
            assert done.code == 0, done.output


async def _succeed(node: Node, *words: str) -> None:
    done = await node.run(*words)
    assert done.code == 0, done.output


def _equip(node: Node, folder: Path) -> None:
    """Give it what a machine may not have, and guests do: arping, of the native guest's busybox."""
    busybox = PLACES.bed("amd64") / "root/usr/bin/busybox"
    assert busybox.exists(), f"{busybox} is missing: run scripts/testbed setup"
    (folder / "arping").symlink_to(busybox)
    node.environment["PATH"] = f"{folder}:{node.environment['PATH']}"


@contextmanager
def _in_network_of(node: Node) -> Iterator[None]:
    """What this thread makes meanwhile is in the node's network. No checkpoint inside."""
    with _opened("self") as ours, _opened(node.init) as theirs:
        _enter(theirs)
        try:
            yield
        finally:
            _enter(ours)


@contextmanager
def _opened(process: object) -> Iterator[int]:
    fd = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _enter(network: int) -> None:
    if _libc.setns(network, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")
