"""A process with what only a dump of namespaces has images for; run as the first of new IPC, UTS, network and PID ones.

System V messages, semaphores and memory, TCP connections with data under way over IPv4 and IPv6, a terminal, a memfd, a
FIFO with data, a lock, descriptors of events, signals, timers and watches. Says "ready" on stdout, then closes it.
"""

import ctypes
import fcntl
import mmap
import os
import pty
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

libc = ctypes.CDLL(None, use_errno=True)
libc.shmat.restype = ctypes.c_void_p
CREATE = 0o1600  # IPC_CREAT and permissions


def must(result: int) -> int:
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def system_v() -> None:
    queue = must(libc.msgget(1234, CREATE))
    for kind, text in ((1, b"a message of 23 bytes.."), (2, b"odd"), (3, b"")):
        must(libc.msgsnd(queue, kind.to_bytes(8, "little") + text, len(text), 0))
    must(libc.semget(1235, 3, CREATE))
    segment = libc.shmat(must(libc.shmget(1236, 5000, CREATE)), None, 0)
    ctypes.memmove(segment, b"System V", 8)


def connections() -> list[socket.socket]:
    kept = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM)]
    kept[0].bind(("127.0.0.1", 0))
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        listening = socket.socket(family)
        listening.bind((address, 0))
        listening.listen()
        client = socket.create_connection(listening.getsockname()[:2])
        accepted = listening.accept()[0]
        client.send(b"not read yet")
        kept += [listening, client, accepted]
    return kept


def descriptors(directory: Path) -> list[object]:
    poll, (reading, _) = select.epoll(), os.pipe()
    poll.register(reading, select.EPOLLIN)
    must(libc.eventfd(3, 0))
    must(libc.timerfd_create(1, 0))
    must(libc.signalfd(-1, b"\x01".ljust(128, b"\0"), 0))
    must(libc.inotify_add_watch(must(libc.inotify_init()), os.fsencode(directory), 2))
    memfd = os.memfd_create("memfd")
    os.write(memfd, b"contents" * 100)
    os.mkfifo(directory / "fifo")
    os.write(os.open(directory / "fifo", os.O_RDWR), b"in the fifo")
    pty.openpty()
    lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return [poll, mmap.mmap(memfd, 800)]


def main() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    system_v()
    kept: list[object] = [connections(), descriptors(Path(sys.argv[1]))]
    os.write(1, b"ready\n")
    os.dup2(0, 1)
    while kept:
        signal.pause()


if __name__ == "__main__":
    main()
