"""Pages from a page server, and from processes; what is told when either is gone."""

import mmap
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio

from imgnode import proc
from imgnode.pipes import Pipe
from imgproxy.memory_source import MemorySource, PageServerSource, ProcessMemory, SourceGone, page_server_works
from imgwire.page_ranges import PageRange
from imgwire.page_server import PageServerConnection, Purpose
from imgwire.page_server_messages import PAGE_SIZE, Layout, PagesAsked, PageServerEvent

pytestmark = pytest.mark.t1

BASE = 0x7F0000000000
#: Says where 4 pages are that it has filled, and waits.
HOLDER = """
import ctypes, mmap, sys
memory = mmap.mmap(-1, 4 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(4):
    memory[page * 4096 : (page + 1) * 4096] = bytes([page + 1]) * 4096
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
sys.stdin.read()
"""


async def _all(source: MemorySource, one: PageRange) -> bytes:
    """What comes of a request."""
    pages, pipe, data = await source.ask(one), Pipe(), b""
    come = one._replace(end=one.start + pages * PAGE_SIZE)
    try:
        while come.start < come.end:
            moved = await source.move(come, pipe)
            data += os.read(pipe.reader, moved)
            come = come._replace(start=come.start + moved)
    finally:
        pipe.close()
    return data


async def _serve(sock: trio.socket.SocketType, requests: int) -> None:
    """A page server that gives two pages at most, and hangs up after so many requests."""
    connection, stream = PageServerConnection(Purpose.LAZY), trio.SocketStream(sock)
    async with stream:
        for _ in range(requests):
            events: list[PageServerEvent] = []
            while not events:
                events = connection.receive_data(await sock.recv(connection.wanted))
            (asked,) = events
            assert isinstance(asked, PagesAsked)
            pages = min(2, asked.pages)
            await stream.send_all(connection.answer_get(pages) + bytes([asked.pid]) * pages * PAGE_SIZE)


async def test_a_page_server() -> None:
    ours, theirs = map(trio.socket.from_stdlib_socket, socket.socketpair())
    with ours:
        source = PageServerSource(ours, Layout.WIDE)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, theirs, 2)
            assert await _all(source, PageRange(7, BASE, BASE + PAGE_SIZE)) == bytes([7]) * PAGE_SIZE
            assert await _all(source, PageRange(8, BASE, BASE + 9 * PAGE_SIZE)) == bytes([8]) * 2 * PAGE_SIZE
        with pytest.raises(SourceGone, match="criu dump"):
            await source.ask(PageRange(7, BASE, BASE + PAGE_SIZE))


@pytest.fixture
def holder() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process, stopped, and where its pages are."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout
    address = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGSTOP)
    yield process, address
    process.kill()
    process.communicate()


async def test_a_stopped_process(holder: tuple[subprocess.Popen[bytes], int]) -> None:
    process, address = holder
    assert address % mmap.PAGESIZE == 0
    source = ProcessMemory([proc.identify(process.pid)])
    one = PageRange(proc.innermost_pid(process.pid), address, address + 4 * PAGE_SIZE)
    assert await _all(source, one) == b"".join(bytes([page]) * PAGE_SIZE for page in (1, 2, 3, 4))
    assert await _all(source, one._replace(start=address + 2 * PAGE_SIZE)) == bytes([3]) * 4096 + bytes([4]) * 4096
    with pytest.raises(SourceGone, match="the memory of process"):
        await _all(source, PageRange(one.pid, 0, PAGE_SIZE))
    with pytest.raises(SourceGone, match="process 1 is gone"):
        await source.ask(PageRange(1, address, address + PAGE_SIZE))
    process.kill()
    process.wait()
    with pytest.raises(SourceGone, match="gone, and its memory with it"):
        await source.ask(one)


def test_whether_criu_can_serve_is_known() -> None:
    assert page_server_works() in (True, False)
