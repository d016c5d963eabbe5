"""What both programs count. Where nobody asks for it (`--metrics`), nothing is: see `imgnode.metrics_server`.

The protocols are the part of prometheus_client's metrics that is used, so that it need not be loaded at each start.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from imgnode.metrics_server import MetricsServer


class Counter(Protocol):
    """Counts up; one for each set of labels."""

    def labels(self, *labelvalues: Any) -> "Counter":
        """That of these labels."""
        ...

    def inc(self, amount: float = 1) -> None:
        """Count."""
        ...


class Gauge(Protocol):
    """A value that is asked for."""

    def labels(self, *labelvalues: Any) -> "Gauge":
        """That of these labels."""
        ...

    def set_function(self, f: Callable[[], float]) -> None:
        """Whom to ask."""
        ...


class Histogram(Protocol):
    """How often something took how long."""

    def observe(self, amount: float) -> None:
        """Once so long."""
        ...


class _Nothing:
    """Any of them, where nobody wants to know."""

    def labels(self, *_values: Any) -> "_Nothing":
        return self

    def inc(self, amount: float = 1) -> None:
        """Do not count."""

    def set_function(self, f: Callable[[], float]) -> None:
        """Do not ask."""

    def observe(self, amount: float) -> None:
        """Do not count."""


_NOTHING = _Nothing()


@dataclass(frozen=True)
class Metrics:
    """What both programs count."""

    image_bytes: Counter = _NOTHING
    """Bytes of images, by direction (`in`, `out`) and kind (the image's name without its number: `pages`,
    `core`).
    """
    sessions: Gauge = _NOTHING
    """Sessions now, by state."""
    reconnects: Counter = _NOTHING
    """Times that a cut link was joined again."""
    zstd_bytes: Counter = _NOTHING
    """Bytes before (`in`) and after (`out`) compression."""
    patches: Counter = _NOTHING
    """Ranges rewritten in place before a set was complete."""
    restore_seconds: Histogram = _NOTHING
    """From the last image complete to the process restored."""
    commit_seconds: Histogram = _NOTHING
    """From the process restored to the hand-over committed."""


def metrics_server(address: str | None) -> "MetricsServer | None":
    """Who counts and serves, where that is asked for; its library is loaded then."""
    if not address:
        return None
    from imgnode.metrics_server import MetricsServer

    return MetricsServer(address)
