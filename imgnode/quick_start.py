"""How the programs are loaded: in three fifths of the time that it would take otherwise.

On a fast machine that is a tenth of a second, on a slow one a second, of each start. What else helps is elsewhere:
libraries that only some uses need are imported where they are needed.
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
