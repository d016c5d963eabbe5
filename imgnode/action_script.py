"""What CRIU tells an action script (`--action-script`) in its environment. Standard library only.

CRIU 4.1.1 runs the script as a program without arguments, 4.2.1 through a shell; so the script takes none and finds
everything here. The pid of CRIU is in the path of the images directory, /proc/PID/fd/N: it is right also when a shell
stands between.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imgwire.errors import UsageError

_IMAGE_DIR = re.compile(r"/proc/(\d+)/fd/\d+")


@dataclass(frozen=True)
class Action:
    """One call of the script."""

    name: str  #: pre-stream, post-dump, post-restore ...
    criu: int  #: CRIU's pid
    init: int  #: pid of the tree's root, 0 before it is known
    directory: Path  #: the images directory (`-D`)


def from_environment(environment: Mapping[str, str] = os.environ) -> Action:
    """The action that this process was started for; UsageError outside of CRIU."""
    name = environment.get("CRTOOLS_SCRIPT_ACTION")
    images = environment.get("CRTOOLS_IMAGE_DIR", "")
    found = _IMAGE_DIR.fullmatch(images)
    if not name or not found:
        raise UsageError("this command is an action script: pass it to criu with --action-script")
    init = environment.get("CRTOOLS_INIT_PID", "0")
    return Action(name, int(found[1]), int(init), Path(images).readlink())
