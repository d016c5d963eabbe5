"""The process that the tests of transforms dump, and its life: started, dumped, restored, asked what it sees."""

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("furnished.c")
PATIENCE_MILLISECONDS = 30_000
PRIVATE, SHARED, PAGE = 0x100000000, 0x200000000, 4096


@dataclass
class Furnished:
    """A `furnished` process of which all is below `home`, and its images in `images`. Commands raise when they fail."""

    criu: Path
    home: Path
    images: Path
    options: tuple[str, ...] = ()
    pid: int = 0
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [self.home / "furnished", *arguments], cwd=self.home, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self.pid = self._process.pid
        assert self._process.stdout is not None
        with self._process.stdout as said:
            assert said.readline() == b"ready\n"

    def dump(self) -> None:
        """The tree is dumped and dead afterwards, nothing of it a zombie."""
        assert self._process is not None
        self.images.mkdir()
        self._run("dump", self.images, "-t", str(self.pid))
        self._process.wait()
        self._process = None

    def restore(self, images: Path) -> None:
        self._run("restore", images, "-d")

    def report(self, home: Path) -> dict[str, str]:
        """What the restored process, of which `home` is the working directory, sees; it ends by that."""
        process = os.pidfd_open(self.pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGUSR1)
            end = select.poll()
            end.register(process, select.POLLIN)
            assert end.poll(PATIENCE_MILLISECONDS), "the restored process does not end"
        finally:
            os.close(process)
        lines = (home / "report.txt").read_text(errors="replace").splitlines()
        return dict(line.split("=", 1) for line in lines)

    def kill(self) -> None:
        """The first process, where a test failed before it was dumped."""
        if self._process is not None:
            os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()

    def _run(self, verb: str, images: Path, *more: str) -> None:
        command: list[str | Path] = [self.criu, verb, "-D", images, "-o", f"{verb}.log", "-v2", *more, *self.options]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        log = (images / f"{verb}.log").read_text() if (images / f"{verb}.log").exists() else ""
        assert done.returncode == 0, f"{verb}: {done.stderr.decode()}\n{log[-3000:]}"


@pytest.fixture(scope="session")
def furnished_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("program") / "furnished"
    subprocess.run(["gcc", "-std=gnu17", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", program, SOURCE], check=True)
    return program


@pytest.fixture
def furnish(furnished_program: Path, node_dir: Path) -> Iterator[Callable[..., Furnished]]:
    """Starts a furnished process in a home of its own; its executable is there too."""
    with ExitStack() as started:

        def start(criu: Path, *arguments: str, options: tuple[str, ...] = ()) -> Furnished:
            home = node_dir / "old"
            home.mkdir()
            (home / "furnished").write_bytes(furnished_program.read_bytes())
            (home / "furnished").chmod(0o755)
            process = Furnished(criu, home, node_dir / "images", options)
            started.callback(process.kill)
            process.start(*arguments)
            return process

        yield start
