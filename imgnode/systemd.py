"""What a service says to systemd and gets from it: readiness, the watchdog, sockets that were opened for it.

Both programs run under systemd or without: each function does nothing when the variable that asks for it is
not set. Own code, because the protocol is one datagram and three variables (sd_notify(3), sd_listen_fds(3)).
"""

import os
import socket
from collections.abc import MutableMapping

import trio

from imgwire.errors import UsageError

FIRST_FD = 3
"""SD_LISTEN_FDS_START: passed sockets are numbered from here."""

DEFAULT_NAME = "unknown"
"""The name that systemd gives to sockets when the unit names none."""


def notify(state: str) -> bool:
    """Tell systemd `state`, such as "READY=1", "STATUS=3 sessions" or "STOPPING=1". False if nobody asked to
    be told.

    Several assignments may be joined by newlines. OSError if the socket is named but cannot be reached.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address[0] not in "/@":
        raise UsageError(f"NOTIFY_SOCKET is {address!r}: it must be an absolute path or start with @")
    name = "\0" + address[1:] if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        sock.sendto(state.encode(), name)
    return True


def watchdog_interval() -> float | None:
    """Seconds between two signs of life: half of what the unit allows.

    None if no watchdog watches this process.
    """
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    allowed = _number(os.environ, "WATCHDOG_USEC")
    return allowed / 2_000_000 if allowed else None


async def watchdog() -> None:
    """Give signs of life until cancelled; return at once if nobody asked for them."""
    interval = watchdog_interval()
    while interval is not None:
        notify("WATCHDOG=1")
        await trio.sleep(interval)


def listen_fds() -> dict[str, list[socket.socket]]:
    """The sockets that systemd opened for this process, by the name that the unit gives them, in its order.

    The variables are removed, so that no child takes the sockets for its own, and the sockets are made
    close-on-exec. The caller owns them. Empty if there are none, or if they are meant for another process.
    """
    env = os.environ
    pid, count = _number(env, "LISTEN_PID"), _number(env, "LISTEN_FDS")
    names = env.get("LISTEN_FDNAMES", "").split(":")
    for variable in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"):
        env.pop(variable, None)
    if pid != os.getpid():
        return {}
    if len(names) != count:
        names = [DEFAULT_NAME] * count
    found: dict[str, list[socket.socket]] = {}
    for fd, name in enumerate(names, FIRST_FD):
        found.setdefault(name or DEFAULT_NAME, []).append(_take(fd))
    return found


def _take(fd: int) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        return socket.socket(fileno=fd)
    except OSError as error:
        raise UsageError(
            f"LISTEN_FDS passes descriptor {fd}, which is no open socket ({error.strerror}): "
            "pass only sockets, numbered from 3"
        ) from error


def _number(env: MutableMapping[str, str], variable: str) -> int:
    text = env.get(variable, "0")
    if not (text.isascii() and text.isdigit()):
        raise UsageError(f"{variable} is {text!r}: it must be a number, as systemd sets it")
    return int(text)
