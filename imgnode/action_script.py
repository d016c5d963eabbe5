"""CRIU's action scripts (`--action-script`): the program that CRIU starts, and what it tells it.

CRIU 4.1.1 runs the script as a program without arguments, 4.2.1 through a shell; so it takes none. Our programs write
it into the images directory, a few lines of shell: most actions are not ours and end there, and for the others Python
starts without its site packages (10 ms instead of 70, with the process frozen). The same hooks can be run as installed
programs, which find the socket by CRIU's images directory. Standard library only.
"""

import os
import re
import sys
from collections import namedtuple
from collections.abc import Mapping, Sequence

from imgwire.errors import UsageError

#: Where the written script tells its control socket.
SOCKET_VARIABLE = "IMGNODE_CONTROL_SOCKET"

_IMAGE_DIR = re.compile(r"/proc/(\d+)/fd/\d+")

_SCRIPT = """#!/bin/sh
# Action script for criu, written by {program}. Removed when it ends.
{first}export {variable}='{socket}'
run() {{ exec '{python}' -S -E -c 'import sys; sys.path.insert(0, "{root}"); import {module} as hook; \
sys.exit(hook.main())'; }}
case "$CRTOOLS_SCRIPT_ACTION" in
{awaited}) run ;;
{told}) (run) </dev/null >/dev/null 2>&1 & ;;
esac
exit 0
"""

#: Beside the images from when an action script of the user's has prepared something, which may have to be undone.
PREPARED = "prepared"

#: Such a script comes first. Where CRIU waits for an answer it has to go well.
_USERS = """case "$CRTOOLS_SCRIPT_ACTION" in
pre-dump | pre-restore) '{path}' && : >"{images}/{prepared}" || exit 1 ;;
pre-resume | post-resume) '{path}' ;;
*) '{path}' || exit 1 ;;
esac
"""


class Action(namedtuple("Action", ("name", "criu", "init", "socket"))):
    """One call of the script."""

    __slots__ = ()

    name: str  #: pre-stream, post-dump, post-restore ...
    criu: int  #: CRIU's pid
    init: int  #: pid of the tree's root, 0 before it is known
    socket: str  #: path of our program's control socket


def from_environment(socket: str, environment: Mapping[str, str] = os.environ) -> Action:
    """The action that this process was started for; UsageError outside of CRIU.

    `socket` is the control socket's name in the images directory. The pid of CRIU is in the path of that directory,
    /proc/PID/fd/N: it is right also when a shell stands between.
    """
    name = environment.get("CRTOOLS_SCRIPT_ACTION")
    images = environment.get("CRTOOLS_IMAGE_DIR", "")
    found = _IMAGE_DIR.fullmatch(images)
    if not name or not found:
        raise UsageError("this command is an action script: pass it to criu with --action-script")
    path = environment.get(SOCKET_VARIABLE) or _near(images, socket)
    return Action(name, int(found[1]), int(environment.get("CRTOOLS_INIT_PID", "0")), path)


def script(module: str, socket: str, awaited: Sequence[str], told: Sequence[str] = (), first: str = "") -> str:
    """The text of a script that runs `module`'s `main` for the actions `awaited`, and beside CRIU for those `told`.
    `first`: what `users` makes."""
    return _SCRIPT.format(
        first=first,
        program=module.partition(".")[0],
        variable=SOCKET_VARIABLE,
        socket=_quoted(socket),
        python=_quoted(sys.executable),
        root=_quoted(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))),
        module=module,
        awaited="|".join(awaited),
        told="|".join(told) or "-",
    )


def users(path: "os.PathLike[str] | None", images: "os.PathLike[str] | str" = "$CRTOOLS_IMAGE_DIR") -> str:
    """The part of a script that runs one of the user's, for all actions; "" if there is none. `images`: the directory
    for `PREPARED`."""
    if path is None:
        return ""
    return _USERS.format(path=_quoted(os.fspath(path)), images=_quoted(os.fspath(images)), prepared=PREPARED)


def _near(images: str, socket: str) -> str:
    """In the images directory or in the one above: a session's directory is inside its cache's."""
    directory = os.path.realpath(images)
    here = os.path.join(directory, socket)
    return here if os.path.exists(here) else os.path.join(os.path.dirname(directory), socket)


def _quoted(path: str) -> str:
    if "'" in path or '"' in path or "\\" in path or "\n" in path:
        raise UsageError(f"{path}: quotes in a path that a script must name; use another directory")
    return path
