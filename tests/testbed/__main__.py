"""`scripts/testbed boot`: a guest by hand, with a shell on this terminal, or for one command."""

import os
import sys

import trio

from tests.testbed.guest import PLACES, USUAL, guest
from tests.testbed.machine import qemu

COMMAND_DEADLINE = 3600.0  # seconds


async def run(isa: str, words: list[str]) -> int:
    """Boot a guest, run a command in it without input, and show what it wrote; its exit code."""
    async with guest(isa) as vm:
        done = await vm.run(*words, deadline=COMMAND_DEADLINE)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        return done.code


def main(isa: str, *words: str) -> None:
    """Arguments as scripts/testbed checked them: an ISA, then nothing or -- and a command."""
    if words:
        code = trio.run(run, isa, list(words[1:]))
        sys.exit(code if code >= 0 else 128 - code)
    command = qemu(isa, PLACES, USUAL)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
