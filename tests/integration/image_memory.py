"""What the kernel holds for a cache's images, whatever the cache itself says of it."""

from contextlib import suppress
from pathlib import Path

from tests.nodes import Program


def held(cache: Program) -> int:
    """Bytes of memory in the cache's memfds."""
    total = 0
    for descriptor in list(Path(f"/proc/{cache.pid}/fd").iterdir()):
        with suppress(FileNotFoundError):  # closed meanwhile
            if str(descriptor.readlink()).startswith("/memfd:imgcache"):
                total += descriptor.stat().st_blocks * 512
    return total
