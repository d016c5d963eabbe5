"""How the programs are loaded quickly: on an emulated machine a start takes seconds.

What else helps is elsewhere: libraries that only some uses need are imported where they are needed. All of it took the
processor time of a start (`imgproxy --version`, least of ten) from 0.36 to 0.32 s, of `imgcache` from 0.32 to 0.30 s.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """While a program's modules are imported. What stays is never looked at by the garbage collector."""
    gc.disable()
    _import_structlog()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def _import_structlog() -> None:
    """structlog loads all of rich, if it is there, for tracebacks in colours, which we do not have it write."""
    if "rich" in sys.modules:
        return
    sys.modules["rich"] = None  # type: ignore[assignment]  # as if it were not there
    try:
        import structlog  # noqa: F401
    finally:
        del sys.modules["rich"]
