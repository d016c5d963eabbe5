"""Process 1 of a guest: runs the commands that tests send, many at a time, and passes their input and output on.

It talks to tests/testbed/guest.py on the host over one virtio-serial port, not over the network, which tests may cut,
slow down or lock. Both sides send frames: the number of a command, a kind, a payload. When the host closes its end,
the machine is switched off. As process 1 it also buries orphans.

It uses the standard library alone and little of it, because every import costs time in an emulated machine.
"""

import json
import os
import selectors
import signal
import struct
import sys

PORTS = "/sys/class/virtio-ports"
HEADER = struct.Struct(">IBI")  # number of the command, kind, bytes that follow
READ_SIZE = 1 << 16
NOT_FOUND = 127  # exit code of a command that could not be started, as in shells

START, INPUT, SIGNAL = range(3)  # host to guest: JSON [argv, directory]; bytes, none of them is the end; one byte
READY, STDOUT, STDERR, ENDED = range(3, 7)  # guest to host: the kernel's release; bytes; bytes; exit code as text


class Frames:
    """Cuts what arrives into frames."""

    def __init__(self) -> None:
        self._received = bytearray()

    def feed(self, data: bytes) -> list[tuple[int, int, bytes]]:
        """(number, kind, payload) of each frame that is complete now."""
        self._received += data
        found = []
        while len(self._received) >= HEADER.size:
            number, kind, size = HEADER.unpack_from(self._received)
            end = HEADER.size + size
            if len(self._received) < end:
                break
            found.append((number, kind, bytes(self._received[HEADER.size : end])))
            del self._received[:end]
        return found


def frame(number: int, kind: int, payload: bytes = b"") -> bytes:
    """One frame as it is sent."""
    return HEADER.pack(number, kind, len(payload)) + payload


class Running:
    """A command that runs: its pid and our ends of its pipes; `unwritten`: input that it has not taken yet."""

    def __init__(self, argv: list[str], directory: str) -> None:
        stdin, self.stdin = os.pipe()
        self.stdout, stdout = os.pipe()
        self.stderr, stderr = os.pipe()
        for ours in (self.stdin, self.stdout, self.stderr):
            os.set_blocking(ours, False)
        self.unwritten = bytearray()
        self.input_ended = False
        self.pid = os.fork()
        if self.pid == 0:
            _become(argv, directory, (stdin, stdout, stderr))
        for theirs in (stdin, stdout, stderr):
            os.close(theirs)


def _become(argv: list[str], directory: str, streams: tuple[int, int, int]) -> None:
    """In the child: turn into the command, in a session of its own."""
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGPIPE, signal.SIGCHLD):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.chdir(directory)
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"{argv[0]}: {error}\n".encode())
    os._exit(NOT_FOUND)


class Agent:
    """The loop: frames from the port, output and readiness of pipes, deaths of children."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._frames = Frames()
        self._commands: dict[int, Running] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(port, selectors.EVENT_READ, (self._take_frames,))
        deaths, wakeup = os.pipe()
        for end in (deaths, wakeup):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup)
        self._selector.register(deaths, selectors.EVENT_READ, (self._bury, deaths))

    def serve(self) -> None:
        """Until the host closes its end."""
        self._send(0, READY, os.uname().release.encode())
        while self._port in self._selector.get_map():
            for key, _ready in self._selector.select():
                action, *arguments = key.data
                if self._selector.get_map().get(key.fd) is key:  # a death among these events may have closed it
                    action(*arguments)

    def _send(self, number: int, kind: int, payload: bytes) -> None:
        rest = memoryview(frame(number, kind, payload))
        while rest:
            rest = rest[os.write(self._port, rest) :]

    def _take_frames(self) -> None:
        data = os.read(self._port, READ_SIZE)
        if not data:
            self._selector.unregister(self._port)
        for number, kind, payload in self._frames.feed(data):
            if kind == START:
                self._start(number, payload)
            elif number in self._commands:
                self._pass_on(number, kind, payload)

    def _start(self, number: int, payload: bytes) -> None:
        argv, directory = json.loads(payload)
        command = self._commands[number] = Running(argv, directory)
        for stream, kind in ((command.stdout, STDOUT), (command.stderr, STDERR)):
            self._selector.register(stream, selectors.EVENT_READ, (self._read, number, stream, kind))

    def _pass_on(self, number: int, kind: int, payload: bytes) -> None:
        command = self._commands[number]
        if kind == SIGNAL:
            os.kill(command.pid, payload[0])
            return
        command.unwritten += payload
        command.input_ended = command.input_ended or not payload
        if command.stdin >= 0 and command.stdin not in self._selector.get_map():
            self._selector.register(command.stdin, selectors.EVENT_WRITE, (self._write, number))

    def _write(self, number: int) -> None:
        command = self._commands[number]
        try:
            del command.unwritten[: os.write(command.stdin, command.unwritten)]
        except BrokenPipeError:
            command.unwritten.clear()
            command.input_ended = True
        if not command.unwritten:
            self._selector.unregister(command.stdin)
            if command.input_ended:
                os.close(command.stdin)
                command.stdin = -1

    def _read(self, number: int, stream: int, kind: int) -> bool:
        """Pass on what is there; whether there may be more."""
        try:
            data = os.read(stream, READ_SIZE)
        except BlockingIOError:
            return False
        if data:
            self._send(number, kind, data)
        elif stream in self._selector.get_map():
            self._selector.unregister(stream)
        return bool(data)

    def _bury(self, deaths: int) -> None:
        """Take the exit codes of all that have died: of commands, which are reported, and of orphans."""
        os.read(deaths, READ_SIZE)
        numbers = {command.pid: number for number, command in self._commands.items()}
        while found := _next_dead():
            pid, status = found
            if pid in numbers:
                self._end(numbers[pid], os.waitstatus_to_exitcode(status))

    def _end(self, number: int, code: int) -> None:
        """Whoever inherited the output of a command may live on: what is in the pipes now is all that counts."""
        command = self._commands.pop(number)
        for stream, kind in ((command.stdout, STDOUT), (command.stderr, STDERR)):
            while self._read(number, stream, kind):
                pass
        for stream in (command.stdin, command.stdout, command.stderr):
            if stream >= 0 and stream in self._selector.get_map():
                self._selector.unregister(stream)
            if stream >= 0:
                os.close(stream)
        self._send(number, ENDED, str(code).encode())


def _next_dead() -> tuple[int, int] | None:
    """Pid and wait status of a child that has died; None if there is no more."""
    try:
        pid, status = os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return None
    return (pid, status) if pid else None


def main() -> None:
    """Serve, then switch the machine off."""
    (name,) = (port.name for port in os.scandir(PORTS))
    port = os.open(f"/dev/{name}", os.O_RDWR | os.O_CLOEXEC)
    Agent(port).serve()
    sys.stderr.write("the host has closed its end\n")
    os.execvp("poweroff", ["poweroff", "-f"])


if __name__ == "__main__":
    main()
