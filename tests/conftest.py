"""What all tests share: the CRIUs that scripts/setup unpacked, node directories, the self-checking process, and the
proof that a test leaves nothing behind.

Tests run in the order of their tiers, and each must name one. After every test above t0 the pytest process must hold
the same descriptors as before, and nothing that the test started may be left: every process inherits a mark in its
environment, which survives a migration too, so even a restored process that is nobody's child any more is found.
"""

import os
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from itertools import count
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import settings

from tests.programs import Programs, compile_programs
from tests.programs.orphanage import continue_under_a_subreaper
from tests.programs.selfcheck import SelfCheck, kill_and_wait

TIERS = ("t0", "t1", "t2", "t3")
ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(os.environ.get("IMGPROXY_CACHE") or ROOT / ".cache").resolve()
CRIU_ROLES = ("stable", "latest")
NODE_DIRECTORY_LIMIT = 60  # characters; sun_path has 108 for the directory and the name of a socket
MARK = "IMGPROXY_TEST_MARK"

_mark_numbers = count(1)

settings.register_profile("untimed", deadline=None)  # a busy machine is no error
settings.load_profile("untimed")


def tier_of(item: pytest.Item) -> int:
    tiers = [tier for tier in TIERS if item.get_closest_marker(tier)]
    if not tiers:
        raise pytest.UsageError(f"{item.nodeid}: no tier; mark the module, as in: pytestmark = pytest.mark.t0")
    return TIERS.index(tiers[-1])


def pytest_configure() -> None:
    continue_under_a_subreaper()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Cheap tests first."""
    items.sort(key=tier_of)


def pytest_report_header() -> list[str]:
    return [f"criu-{role}: {_criu_version(role)}" for role in CRIU_ROLES]


def _criu_version(role: str) -> str:
    version = CACHE / "criu" / role / "version"
    return version.read_text().strip() if version.exists() else "missing: run scripts/setup"


def _installed_criu(role: str) -> Path:
    criu = CACHE / "bin" / f"criu-{role}"
    if not criu.exists():
        pytest.fail(f"no {criu}: run scripts/setup", pytrace=False)
    return criu


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(params=CRIU_ROLES)
def criu(request: pytest.FixtureRequest) -> Path:
    """A command that is CRIU; the test runs once with each of those that we support."""
    return _installed_criu(request.param)


@pytest.fixture
def criu_latest() -> Path:
    """The newest CRIU only: for what does not depend on its version, or has sockets (4.1.1 cannot dump them)."""
    return _installed_criu("latest")


@pytest.fixture(scope="session")
def programs() -> Programs:
    return compile_programs(CACHE)


@pytest.fixture
def make_node_dir() -> Iterator[Callable[[], Path]]:
    """Makes fresh 0700 directories on tmpfs where there is one, with paths short enough for sockets in them."""
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK) else "/tmp"
    with ExitStack() as directories:

        def make() -> Path:
            directory = Path(tempfile.mkdtemp(prefix="node-", dir=base))
            directories.callback(shutil.rmtree, directory)
            assert len(str(directory)) < NODE_DIRECTORY_LIMIT
            return directory

        yield make


@pytest.fixture
def node_dir(make_node_dir: Callable[[], Path]) -> Path:
    """One node's directory. Tests with two nodes call make_node_dir."""
    return make_node_dir()


class StartMemcheck(Protocol):
    """What the fixture `start_memcheck` returns. `size` in bytes for each process, `compressible` in percent of each
    page, `listen` a port on 127.0.0.1."""

    def __call__(
        self,
        *,
        size: int = ...,
        threads: int = ...,
        procs: int = ...,
        compressible: int = ...,
        listen: int | None = ...,
        idle: bool = ...,
        seed: int = ...,
    ) -> Awaitable[SelfCheck]: ...


@pytest.fixture
def start_memcheck(programs: Programs, make_node_dir: Callable[[], Path]) -> Iterator[StartMemcheck]:
    """Starts self-checking process trees; whatever became of them, they are dead when the test is over."""
    with ExitStack() as started:

        async def start(
            *,
            size: int = 16 << 20,
            threads: int = 1,
            procs: int = 1,
            compressible: int = 0,
            listen: int | None = None,
            idle: bool = False,
            seed: int = 1,
        ) -> SelfCheck:
            options = {"size": size, "threads": threads, "compressible": compressible, "seed": seed}
            arguments = [f"--{name}={value}" for name, value in options.items()]
            arguments += [] if listen is None else [f"--listen={listen}"]
            arguments += ["--idle"] if idle else []
            check = SelfCheck(programs, make_node_dir(), arguments, procs)
            started.callback(check.kill)
            await check.wait_ready()
            return check

        yield start


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails a test above t0 that leaves a descriptor open in this process, or a process running or unreaped."""
    if tier_of(request.node) == 0:
        yield
        return
    mark = f"{MARK}={os.getpid()}-{next(_mark_numbers)}"
    os.environ[MARK] = mark.removeprefix(f"{MARK}=")
    descriptors_before, children_before = _open_descriptors(), set(_children())
    yield
    del os.environ[MARK]
    found = {pid: _describe(pid) for pid in [*_marked(mark), *_children()] if pid not in children_before}
    left = {pid: what for pid, what in found.items() if what}  # the others have died meanwhile
    for pid in left:
        _bury(pid)
    assert not left, f"processes left behind: {left}"
    opened = {fd: target for fd, target in _open_descriptors().items() if descriptors_before.get(fd) != target}
    assert not opened, f"descriptors left open: {opened}"


def _open_descriptors() -> dict[int, str]:
    """What each descriptor of this process refers to, as in `socket:[123]`; the one that lists them is gone by then."""
    found = {}
    for descriptor in list(Path("/proc/self/fd").iterdir()):
        with suppress(FileNotFoundError):
            found[int(descriptor.name)] = str(descriptor.readlink())
    return found


def _children() -> list[int]:
    """Children of this process, those that nobody has waited for included."""
    tasks = Path("/proc/self/task").iterdir()
    return [int(pid) for task in tasks for pid in (task / "children").read_text().split()]


def _marked(mark: str) -> list[int]:
    """Living processes that a test with this mark started, whoever is their parent now."""
    return [pid for pid in (int(path.name) for path in Path("/proc").glob("[0-9]*")) if _has(pid, mark)]


def _has(pid: int, mark: str) -> bool:
    try:
        return pid != os.getpid() and mark.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def _describe(pid: int) -> str:
    """What it is; "" if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    state = next(line for line in status.splitlines() if line.startswith("State"))
    return f"{command or status.splitlines()[0]} {state}"


def _bury(pid: int) -> None:
    kill_and_wait(pid)
    if pid in _children():
        os.waitpid(pid, 0)
