"""A process for tests to dump in a guest: it knows what its memory must hold, and says on SIGUSR1 whether it does.

It answers through a FIFO, which it holds open only meanwhile: "TIMES right" or "TIMES wrong", TIMES being how often it
has answered before; the first answer comes unasked. Compiled programs would be of one ISA; this is of any.
"""

import signal
import sys
from pathlib import Path

PAGES = 256
PAGE_SIZE = 4096


def page(number: int) -> bytes:
    """What page `number` of the pattern holds. The pattern begins anywhere in a page of memory."""
    return (number + 1).to_bytes(8, "little") * (PAGE_SIZE // 8)


def pattern() -> bytes:
    return b"".join(map(page, range(PAGES)))


def main(answers: str) -> None:
    """`answers`: path of the FIFO."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    memory = bytearray(pattern())
    times = 0
    while True:
        with Path(answers).open("w", encoding="ascii") as file:
            file.write(f"{times} {'right' if memory == pattern() else 'wrong'}")
        times += 1
        signal.sigwait({signal.SIGUSR1})


if __name__ == "__main__":
    main(sys.argv[1])
