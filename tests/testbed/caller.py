"""The other end of a connection: asks `toolchain/programs/teller.c` over and over, and believes nothing.

    python caller.py ADDRESS PORT

It connects once. Some requests at a time are under way, with bytes of many lengths. Each answer must be that of the
request, and of a server that has had all requests before it. `N answered`, on stdout, tells how far it is. SIGTERM ends
it: one line of JSON has the requests, and the longest time in seconds without an answer.
"""

import json
import random
import signal
import socket
import sys
import time

#: Requests under way at once, bytes of one, and seconds between those.
MOST, LONGEST, PAUSE = 8, 6000, 0.01
#: Seconds between two lines of how far it is.
TOLD = 0.2
_BITS = (1 << 64) - 1


class Caller:
    """One connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._answers = sock.makefile("r", encoding="ascii")
        self._draw = random.Random(1)
        self._sum = 0
        self.requests, self.longest = 0, 0.0
        self._last = time.monotonic()

    def ask(self) -> None:
        """Some requests, and their answers."""
        numbers = range(self.requests + 1, self.requests + 1 + self._draw.randint(1, MOST))
        expected = []
        words = bytearray()
        for number in numbers:
            data = self._draw.randbytes(self._draw.randint(0, LONGEST))
            words += f"{number} {len(data)}\n".encode() + data
            for byte in data:
                self._sum = (self._sum * 31 + byte) & _BITS
            expected.append(f"{number} {number} {self._sum}\n")
        self._socket.sendall(words)
        for line in expected:
            answer = self._answers.readline()
            if answer != line:
                sys.exit(f"{answer!r} for {line!r}")
            self._answered()

    def _answered(self) -> None:
        now = time.monotonic()
        self.requests += 1
        self.longest, self._last = max(self.longest, now - self._last), now


def main(address: str, port: str) -> None:
    """Ask until SIGTERM."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    with socket.create_connection((address, int(port))) as sock:
        caller, told = Caller(sock), 0.0
        while signal.sigtimedwait({signal.SIGTERM}, PAUSE) is None:
            caller.ask()
            if time.monotonic() - told > TOLD:
                told = time.monotonic()
                print(f"{caller.requests} answered", flush=True)
    print(json.dumps({"requests": caller.requests, "longest": round(caller.longest, 2)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
