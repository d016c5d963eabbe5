"""Where the link goes: `HOST:PORT`, `unix:PATH`, `fd:IN,OUT`, `file:PATH`, as given on the command line."""

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

from imgwire.errors import UsageError

#: A port or a descriptor.
_NUMBER = re.compile("[0-9]{1,9}")


@dataclass(frozen=True)
class TcpAddress:
    """A TCP endpoint."""

    host: str
    port: int

    @property
    def is_loopback(self) -> bool:
        """Whether nothing sent there leaves the machine (by name only `localhost` counts)."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class UnixAddress:
    """A UNIX stream socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


@dataclass(frozen=True)
class DescriptorAddress:
    """Descriptors that were inherited: one to read, one to write (the same for a socket)."""

    reader: int
    writer: int

    def __str__(self) -> str:
        return f"fd:{self.reader},{self.writer}"


@dataclass(frozen=True)
class FileAddress:
    """An archive file."""

    path: Path

    def __str__(self) -> str:
        return f"file:{self.path}"


Address = TcpAddress | UnixAddress | DescriptorAddress | FileAddress


def parse_address(text: str) -> Address:
    """What the user wrote, or UsageError."""
    scheme, _, rest = text.partition(":")
    if scheme == "unix" and rest:
        return UnixAddress(Path(rest).absolute())
    if scheme == "file" and rest:
        return FileAddress(Path(rest).absolute())
    if scheme == "fd":
        return _descriptors(text, rest)
    return _tcp(text)


def _tcp(text: str) -> TcpAddress:
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not _NUMBER.fullmatch(port) or int(port) > 65535:
        raise UsageError(f"address {text!r}: write HOST:PORT, unix:PATH, fd:IN,OUT or file:PATH")
    return TcpAddress(host, int(port))


def _descriptors(text: str, rest: str) -> DescriptorAddress:
    numbers = rest.split(",")
    if not all(_NUMBER.fullmatch(number) for number in numbers) or len(numbers) not in (1, 2):
        raise UsageError(
            f"address {text!r}: write fd:IN,OUT with the numbers of two open descriptors, or one of a socket"
        )
    return DescriptorAddress(int(numbers[0]), int(numbers[-1]))
