"""The emulated machines: what QEMU is told for each ISA, and the monitor that forwards ports while one runs.

Emulation is in software (TCG): it needs no KVM, and runs the other ISA too. One CPU, so that it is the same everywhere.
The network is QEMU's user-mode one: the guest is 10.0.2.15, the host's loopback is 10.0.2.2 to it, and guests reach
each other through forwarded ports of that loopback. Nothing of it is visible outside of the host.
"""

import json
import os
import re
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import trio

#: The address that the host's loopback has inside a guest.
HOST = "10.0.2.2"
GUEST = "10.0.2.15"
ISAS = ("amd64", "arm64")

_MACHINES = {"amd64": ["qemu-system-x86_64", "-M", "q35"], "arm64": ["qemu-system-aarch64", "-M", "virt,gic-version=3"]}
_CPUS = {
    # With `erms` the kernel and the C library copy by `rep movsb`, which is emulated byte by byte: seven times as slow.
    "amd64": "max,la57=off,erms=off",
    # With pointer authentication, what CRIU 4.1.1 restores never runs: it authenticates its own code by the wrong keys.
    "arm64": "max,pauth=off",
}
_CONSOLES = {"amd64": "ttyS0", "arm64": "ttyAMA0"}
#: Self-tests and random numbers of the kernel's cryptography, of no use here, take 5 of 12 seconds, emulated.
_QUICK_BOOT = (
    "mitigations=off",
    "cryptomgr.notests",
    "initcall_blacklist=init_encrypted,crypto_kdf108_init,jent_mod_init",
)
#: Runs a command that ends with its parent, whatever that dies of; the shell sees if it was dead before setpriv asked.
_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--", "sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"')
_FORWARDED = re.compile(r"TCP\[HOST_FORWARD\] +\d+ +127\.0\.0\.1 +(?P<host>\d+) +\S+ +(?P<guest>\d+) ")


@dataclass(frozen=True)
class Places:
    """Where things are, on the host and, under the same paths, in the guest."""

    clone: Path
    cache: Path

    def bed(self, isa: str) -> Path:
        """What scripts/testbed made for this ISA."""
        return self.cache / "testbed" / isa


@dataclass(frozen=True)
class Hardware:
    """What tests may choose: memory as QEMU takes it, and the CPU by QEMU's name, "" for all that it can emulate.

    `steady`: the machine's own time passes with the instructions that it executes, one in each nanosecond, so that it
    sees a processor of a usual speed, however slowly and beside what else that is emulated. `lan`: a descriptor of a
    network device of the host (tap), the cable of a second one here, `eth1`.
    """

    memory: str = "1G"
    cpu: str = ""
    steady: bool = False
    lan: int | None = None


def qemu(
    isa: str, places: Places, hardware: Hardware, *, agent: int | None = None, monitor: int | None = None
) -> list[str]:
    """The command line of a machine. `agent`, `monitor`: connected sockets; without them, a shell on the console."""
    bed = places.bed(isa)
    words = [*_MACHINES[isa], "-cpu", hardware.cpu or _CPUS[isa], "-accel", "tcg"]
    words += ["-icount", "shift=0"] if hardware.steady else []
    words += ["-smp", "1", "-m", hardware.memory, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
    words += ["-kernel", str(bed / "kernel"), "-initrd", str(bed / "initramfs")]
    words += ["-append", _kernel_arguments(isa, places, shell=agent is None)]
    words += ["-netdev", "user,id=net,ipv6=off", "-device", "virtio-net-pci,netdev=net,romfile="]
    words += ["-device", "virtio-rng-pci"]
    words += ["-drive", f"if=virtio,format=raw,readonly=on,file={bed / 'usr.ext4'}"]
    for name, path in (("clone", places.clone), ("cache", places.cache)):
        words += ["-fsdev", f"local,id={name},path={path},security_model=none,readonly=on,multidevs=remap"]
        words += ["-device", f"virtio-9p-pci,fsdev={name},mount_tag={name}"]
    if hardware.lan is not None:
        words += ["-netdev", f"tap,id=lan,fd={hardware.lan}", "-device", "virtio-net-pci,netdev=lan,romfile="]
    if agent is None:
        return [*words, "-serial", "mon:stdio"]
    words += ["-serial", "stdio", "-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,fd={agent}"]
    words += ["-device", "virtserialport,chardev=agent,name=agent"]
    return [*words, "-chardev", f"socket,id=monitor,fd={monitor}", "-mon", "chardev=monitor,mode=control"]


def _kernel_arguments(isa: str, places: Places, *, shell: bool) -> str:
    """What has no dot and no other meaning to the kernel becomes the environment of its first process."""
    known = [f"console={_CONSOLES[isa]}", "quiet", "panic=-1", *_QUICK_BOOT]
    paths = {"CLONE": places.clone, "CACHE": places.cache}
    told = [f'{name}="{path}"' for name, path in paths.items()]
    return " ".join(known + told + (["CONSOLE=yes"] if shell else []))


@contextmanager
def running(isa: str, places: Places, hardware: Hardware) -> Iterator[tuple[socket.socket, socket.socket, IO[bytes]]]:
    """A machine that runs: its agent, its monitor, and the file that its console goes to. Killed in the end.

    For the main thread: the kernel ends the machine when the thread ends that started it.
    """
    with ExitStack() as opened:
        console = opened.enter_context(tempfile.TemporaryFile())
        agent, agent_there = map(opened.enter_context, socket.socketpair())
        monitor, monitor_there = map(opened.enter_context, socket.socketpair())
        theirs = (agent_there.fileno(), monitor_there.fileno())
        process = subprocess.Popen(
            [*_WITH_PARENT, str(os.getpid()), *qemu(isa, places, hardware, agent=theirs[0], monitor=theirs[1])],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            pass_fds=theirs if hardware.lan is None else (*theirs, hardware.lan),
        )
        opened.callback(process.wait)
        opened.callback(process.kill)
        for end in (agent_there, monitor_there):
            end.close()
        yield agent, monitor, console


class Monitor:
    """QEMU's own control channel."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._received = b""
        self._ports: dict[int, int] = {}

    async def open(self) -> None:
        """Agree on the protocol."""
        await self._call("qmp_capabilities")

    async def forward(self, port: int) -> int:
        """The host's port on 127.0.0.1 that leads to a port of the guest."""
        if port not in self._ports:
            told = await self._tell(f"hostfwd_add net tcp:127.0.0.1:0-{GUEST}:{port}")
            known = {
                int(found["guest"]): int(found["host"])
                for found in _FORWARDED.finditer(await self._tell("info usernet"))
            }
            assert port in known, f"port {port} could not be forwarded: {told}"
            self._ports[port] = known[port]
        return self._ports[port]

    async def _tell(self, line: str) -> str:
        """A command of the monitor that is meant for people; its answer."""
        return str(await self._call("human-monitor-command", {"command-line": line}))

    async def _call(self, name: str, arguments: dict[str, Any] | None = None) -> object:
        await self._stream.send_all(json.dumps({"execute": name, "arguments": arguments or {}}).encode() + b"\n")
        while True:
            told = json.loads(await self._line())
            assert "error" not in told, f"QEMU, asked for {name} {arguments}: {told}"
            if "return" in told:
                return told["return"]

    async def _line(self) -> bytes:
        while b"\n" not in self._received:
            data = await self._stream.receive_some()
            assert data, "QEMU has closed its monitor"
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line
