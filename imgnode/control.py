"""The control socket of a program: one JSON object a line, asked by the action scripts and by `status` and the like.

Lines are short and come from this user's own processes; still they are bounded. The other side is
`imgnode.control_client`.
"""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import structlog
import trio

from imgnode.control_client import MAX_LINE, Request, parse_line
from imgnode.nursery import flat_nursery
from imgnode.unix import allowed, listening, peer_credentials

#: Seconds for a client to say what it wants.
REQUEST_TIMEOUT = 10.0

Say = Callable[[Request], Awaitable[None]]
Handler = Callable[[Request, Say, Callable[[], Awaitable[None]]], Awaitable[None]]

_log = structlog.get_logger()


async def serve_control(
    path: Path, handler: Handler, *, task_status: "trio.TaskStatus[None]" = trio.TASK_STATUS_IGNORED
) -> None:
    """Serve `handler` on a socket at `path`: it gets the request, `say` to answer, and `gone` to wait for a hang-up."""
    async with listening(path) as listener, flat_nursery() as nursery:
        task_status.started()
        while True:
            sock, _ = await listener.accept()
            nursery.start_soon(_serve_one, sock, handler)


async def _serve_one(sock: trio.socket.SocketType, handler: Handler) -> None:
    with sock:
        if not allowed(peer_credentials(sock)):
            return

        async def say(answer: Request) -> None:
            await trio.SocketStream(sock).send_all(json.dumps(answer).encode() + b"\n")

        async def gone() -> None:
            await trio.lowlevel.wait_readable(sock)

        try:
            with trio.fail_after(REQUEST_TIMEOUT):
                request = await _line(sock)
            if request is not None:
                await handler(request, say, gone)
        except (OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError, KeyError, TypeError) as error:
            _log.debug("a client of the control socket went wrong", error=str(error))


async def _line(sock: trio.socket.SocketType) -> Request | None:
    buffer = b""
    while b"\n" not in buffer:
        data = await sock.recv(4096)
        if not data:
            return None
        buffer += data
        if len(buffer) > MAX_LINE:
            raise ValueError("a line that does not end")
    try:
        return parse_line(buffer)
    except RecursionError as error:
        raise ValueError("a request that is nested too deep") from error
