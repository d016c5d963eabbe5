"""Run as a program: two processes that know each other's counter only by shared anonymous memory.

    shared_counter.py FILE

The child counts in the first word and repeats what it sees of the parent in the second; the parent counts in the third
and overwrites FILE with all three. Interpreted, so that a runtime with many mappings is migrated too.
"""

import mmap
import os
import struct
import sys
import time

WORDS = struct.Struct("=3Q")
PAUSE = 0.002


def main(path: str) -> None:
    shared = mmap.mmap(-1, mmap.PAGESIZE)  # MAP_SHARED
    is_parent = os.fork() != 0
    report = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600) if is_parent else -1
    counter = 0
    while True:
        counter += 1
        child, _, parent = WORDS.unpack_from(shared)
        if is_parent:
            struct.pack_into("=Q", shared, 16, counter)
            os.pwrite(report, b"%016d %016d %016d\n" % (child, _, counter), 0)
        else:
            struct.pack_into("=2Q", shared, 0, counter, parent)
        time.sleep(PAUSE)


if __name__ == "__main__":
    main(sys.argv[1])
