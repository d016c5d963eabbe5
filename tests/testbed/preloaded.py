"""`imgproxy`, many times for one start of Python: in an emulated machine importing it takes longer than a migration.

Runs in a guest. Each line of its input is JSON, the arguments of a run and the files for what it writes to stdout and
to stderr; each run is a process of its own, whose end it tells on stderr: `run 1 ended: 0`, the exit code.
"""

import json
import os
import sys

from imgproxy import cli
from imgproxy.__main__ import main


def _run(arguments: list[str], stdout: str, stderr: str) -> int:
    """In a process of its own; its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number, path, flags in ((0, os.devnull, os.O_RDONLY), (1, stdout, os.O_WRONLY), (2, stderr, os.O_WRONLY)):
        opened = os.open(path, flags | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(opened, number)
        os.close(opened)
    sys.argv = ["imgproxy", *arguments]
    main()
    os._exit(0)


if __name__ == "__main__":
    assert cli.app is not None, "all of it is loaded"
    print("ready", file=sys.stderr, flush=True)
    for number, line in enumerate(sys.stdin, 1):
        print(f"run {number} ended: {_run(*json.loads(line))}", file=sys.stderr, flush=True)
