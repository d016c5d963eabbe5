"""What `imgcache status` shows a person."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from imgnode.command_line import show_size
from imgnode.control_client import Request


def show(sessions: Sequence[Request]) -> None:
    """A row for each session, and why those were aborted that were."""
    Console().print(_table(sessions) if sessions else "no sessions")
    for one in sessions:
        if one["reason"]:
            print(f"{one['name']}: {one['reason']}")


def _table(sessions: Sequence[Request]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("SESSION", "STATE", "IMAGES", "BYTES", "MEMORY", "SPOOL", "SOURCE", "RESTORE"):
        table.add_column(heading, no_wrap=True)
    for one in sessions:
        sizes = (show_size(one[key]) for key in ("bytes", "memory", "spool"))
        restore = f"criu {one['restore']}" if one["restore"] else "-"
        table.add_row(one["name"], one["state"], str(one["images"]), *sizes, one["source"], restore)
    return table
