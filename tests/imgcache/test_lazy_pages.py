"""Pages for a `criu lazy-pages` that is killed in the middle of an answer."""

import os
import socket
import struct
from pathlib import Path
from typing import cast

import pytest
import trio

from imgcache.arena import Extent
from imgcache.lazy_memory import Memory
from imgcache.serve.lazy_pages import LazyPages
from imgcache.session import Session
from imgnode.signalling import Changes
from imgwire.messages import WantPages

pytestmark = pytest.mark.t1

PAGE, PAGES = 4096, 1000
GET = 7


class _Session:
    """What is used of one."""

    name = "mine"

    def __init__(self) -> None:
        self.changes = Changes()


class _Memory:
    """All pages are here, in one file."""

    total = here = PAGES * PAGE

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def find(self, pid: int, address: int, pages: int) -> list[Extent]:
        return [Extent(self._fd, 0, pages * PAGE)]

    def ask(self, pid: int, address: int) -> WantPages | None:
        return None


async def test_killed_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    """What is read from it fails, and what is written to it, in the same moment: it is served no further."""
    (tmp_path / "pages").write_bytes(bytes(PAGES * PAGE))
    fd = os.open(tmp_path / "pages", os.O_RDONLY)
    ours, theirs = socket.socketpair()
    lazy = LazyPages(cast(Session, _Session()), cast(Memory, _Memory(fd)), "criu", tmp_path)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            with trio.socket.from_stdlib_socket(ours) as sock:
                nursery.start_soon(lazy._serve, sock)
                theirs.sendall(struct.pack("<IIQQ", GET, PAGES, 0x10000, 7 << 8 | 1))
                await trio.testing.wait_all_tasks_blocked()
                theirs.close()
                await trio.testing.wait_all_tasks_blocked()
                assert sock.fileno() == -1
    os.close(fd)
