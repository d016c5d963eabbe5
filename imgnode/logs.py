"""Logs: one line per event, for a person on a terminal or as JSON for whatever collects them.

Both programs call `configure` once, first thing. The stream decides the form: a terminal gets coloured lines,
everything else (a file, a pipe, the journal) gets one JSON object per line. Without `-v` an error is one line
that says what happened; with it, debug events and whole tracebacks are shown. Much of what is logged was sent
by a peer, so control characters never reach the terminal: they are escaped in every value.
"""

import logging
import sys
from typing import TYPE_CHECKING, TextIO

import structlog

if TYPE_CHECKING:
    from structlog.typing import EventDict, Processor, WrappedLogger


def configure(verbosity: int, stream: TextIO = sys.stderr) -> None:
    """Send all logs to `stream`.

    `verbosity` 0 shows info and worse, one line each; 1 or more shows debug and tracebacks.
    """
    verbose = verbosity > 0
    human = stream.isatty()
    structlog.configure(
        processors=_processors(verbose, human),
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
        logger_factory=structlog.WriteLoggerFactory(file=stream),
        cache_logger_on_first_use=False,
    )


def _processors(verbose: bool, human: bool) -> "list[Processor]":
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info if verbose else _one_line_error,
        _escape,
    ]
    if human:
        return [*shared, structlog.dev.ConsoleRenderer(colors=True, pad_event_to=0)]
    return [*shared, structlog.processors.JSONRenderer()]


def _one_line_error(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
    """Put the exception's type and text in place of its traceback."""
    info = event.pop("exc_info", None)
    error = sys.exc_info()[1] if info is True else info[1] if isinstance(info, tuple) else info
    event.pop("stack", None)
    if isinstance(error, BaseException):
        event.setdefault("error", f"{type(error).__name__}: {error}")
    return event


def _escape(_logger: "WrappedLogger", _method: str, event: "EventDict") -> "EventDict":
    """Escape control characters in all texts but tracebacks, which are ours and have many lines."""
    for key, value in event.items():
        if isinstance(value, str) and key not in ("exception", "stack") and not value.isprintable():
            event[key] = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in value)
    return event
