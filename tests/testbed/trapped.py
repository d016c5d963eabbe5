"""Runs in a guest: a program spawned at a function, then stopped at random moments, and let go of again, up to its end.

    python3 trapped.py TRAPS SEED FUNCTION PROGRAM ARGUMENTS

Says how each stop was; then comes what the program writes.
"""

import random
import sys
from pathlib import Path

import trio

from imgnode import proc
from imgproxy.trap import Stopped, release, spawn, trap

#: Seconds for all threads to come to points, and for the program to end: emulated, on a machine with much else to do.
DEADLINE = 300.0


async def main(traps: int, seed: int, function: str, words: list[str]) -> None:
    """Stop it so many times."""
    moments = random.Random(seed)
    async with spawn(words, function, DEADLINE) as stopped:
        pass
    process = proc.identify(stopped.pid)
    await _let_go(stopped)
    for _ in range(traps):
        await trio.sleep(moments.random())
        async with trap(process.pid, DEADLINE) as stopped:
            pass
        await _let_go(stopped)
    await trio.to_thread.run_sync(proc.wait_dead, [process], DEADLINE)


async def _let_go(stopped: Stopped) -> None:
    """Of a process that stands, which a second look confirms."""
    print(stopped.line(), flush=True)
    for task in Path(f"/proc/{stopped.pid}/task").iterdir():
        assert "State:\tT (stopped)" in (task / "status").read_text()
    async with trap(stopped.pid, DEADLINE) as again:
        assert again.hits == 0
    release(stopped.pid)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
