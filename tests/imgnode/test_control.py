"""The control socket: both sides of it, and clients that misbehave."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from imgnode.control import REQUEST_TIMEOUT, Say, serve_control
from imgnode.control_client import MAX_LINE, ControlClient, Request, parse_line
from tests.playbook import virtual_time

pytestmark = pytest.mark.t1


class Echo:
    """Answers with what it was asked, as often as asked to; notes who hung up."""

    def __init__(self) -> None:
        self.hung_up = trio.Event()

    async def __call__(self, request: Request, say: Say, gone: Callable[[], Awaitable[None]]) -> None:
        for number in range(int(request.get("times", 1))):
            await say({**request, "number": number})
        if request.get("wait"):
            await gone()
            self.hung_up.set()


@asynccontextmanager
async def served(directory: Path) -> AsyncIterator[tuple[Path, Echo]]:
    path, echo = directory / "control.sock", Echo()
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_control, path, echo)
        yield path, echo
        nursery.cancel_scope.cancel()


async def say_raw(path: Path, raw: bytes) -> bytes:
    """Say something; return all that comes back."""
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(raw)
        return b"".join([part async for part in stream])


async def end_of(stream: trio.SocketStream) -> bytes:
    """What comes until the other side hangs up, leaving unread what we said or not."""
    try:
        return b"".join([part async for part in stream])
    except trio.BrokenResourceError:
        return b""


async def test_a_question_is_answered(node_dir: Path) -> None:
    async with served(node_dir) as (path, _):
        assert await say_raw(path, b'{"a": 1}\n') == b'{"a": 1, "number": 0}\n'


async def test_the_blocking_client_reads_every_answer(node_dir: Path) -> None:
    def ask(path: Path) -> list[Request]:
        client = ControlClient(str(path))
        client.ask({"times": 3})
        answers = list(client.answers())
        client.close()
        return answers

    async with served(node_dir) as (path, _):
        answers = await trio.to_thread.run_sync(ask, path)
    assert [answer["number"] for answer in answers] == [0, 1, 2]


async def test_a_client_that_hangs_up_is_noticed(node_dir: Path) -> None:
    async with served(node_dir) as (path, echo):
        stream = await trio.open_unix_socket(path)
        await stream.send_all(b'{"wait": true}\n')
        await stream.receive_some()
        await stream.aclose()
        await echo.hung_up.wait()


def test_nobody_there_is_an_error_of_the_client(node_dir: Path) -> None:
    with pytest.raises(FileNotFoundError):
        ControlClient(str(node_dir / "control.sock"))


@pytest.mark.parametrize(
    "raw",
    [
        *(b"\n", b"garbage\n", b"[1]\n", b'"x"\n', b"\xff\xfe\n", b'{"a": 1}\n{"b": 2}\n'),
        *(b"[" * 60_000 + b"\n", b"x" * (MAX_LINE + 5000)),
    ],
    ids=["empty", "garbage", "list", "text", "not UTF-8", "two", "nested", "endless"],
)
async def test_a_client_that_talks_nonsense_is_dropped_alone(node_dir: Path, raw: bytes) -> None:
    async with served(node_dir) as (path, _):
        async with await trio.open_unix_socket(path) as stream:
            await stream.send_all(raw)
            assert await end_of(stream) == b""
        assert await say_raw(path, b"{}\n")


@virtual_time
async def test_a_silent_client_is_dropped_and_blocks_nobody(node_dir: Path) -> None:
    async with served(node_dir) as (path, _), await trio.open_unix_socket(path) as silent:
        started = trio.current_time()
        await silent.send_all(b'{"half": ')
        assert await silent.receive_some() == b""
        assert trio.current_time() - started >= REQUEST_TIMEOUT


def test_a_line_is_an_object() -> None:
    assert parse_line(b'{"a": 1}') == {"a": 1}
    with pytest.raises(ValueError, match="not an object"):
        parse_line(b"1")
