"""The `criu` of zdtm.py: passes everything on to the real one, but for the pages of rounds, which take our way.

    page-server     the first of a test starts `imgproxy --rounds` on the port that zdtm has chosen
    pre-dump, dump  the real one, with the options that `imgproxy rounds` would print in place of zdtm's for pages
    restore         the real one, from the images that the cache extracts from all rounds

What belongs together is known by the directory that has a directory for each round. CRIU's statistics are kept out of
zdtm's sight, which would count the pages beside them. With ZDTM_PAGES=criu that is all that is done, for comparison.
Little of the standard library: it starts seven times for each test, in an emulated machine.
"""

import fcntl
import json
import os
import socket
import sys
import time

from imgnode.control_client import ControlClient, Request

CRIU = "/usr/sbin/criu"
PLACE = "/run/zdtm"
PROGRAMS = f"{PLACE}/programs"  #: the socket of programs.py
CACHE = f"{PLACE}/cache"  #: images directory of the imgcache
LINK = f"{PLACE}/link"  #: where that listens
READY = '"ready"'
#: zdtm's options for pages, and whether each has a value.
PAGES = {"--images-dir": 1, "--prev-images-dir": 1, "--track-mem": 0, "--page-server": 0, "--address": 1, "--port": 1}


def value(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def without(words: list[str], *names: str) -> list[str]:
    """Without these options."""
    kept, rest = [], iter(words)
    for word in rest:
        if word not in names:
            kept.append(word)
        elif PAGES[word]:
            next(rest)
    return kept


def start(*words: str, until: str, place: str) -> str:
    """Start an imgproxy; what it has written to stderr when that has `until`, or at its end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.connect(PROGRAMS)
        sock.sendall(json.dumps([words, until, place]).encode() + b"\n")
        return str(json.loads(sock.makefile().readline()))


def ask(path: str, **request: object) -> Request:
    """What `imgproxy rounds` and `imgcache extract` do, which take longer to start than to ask; the answer."""
    answer = ControlClient(path).only_answer(request)
    assert answer and answer["ok"], f"{path}, asked for {request}: {answer}"
    return answer


class Rounds:
    """Those of one process; `images`: zdtm's directory for the one that is meant."""

    def __init__(self, images: str) -> None:
        self._images = images
        self._all = os.path.dirname(images)
        self._known = f"{self._all}/rounds"

    @property
    def directory(self) -> str:
        """That of our proxy."""
        return os.readlink(self._known)

    @property
    def _name(self) -> str:
        return os.path.basename(self.directory)

    def listen(self, port: str) -> None:
        """Our page server is there."""
        if not os.path.lexists(self._known):
            directory = f"{PLACE}/{time.time_ns():x}"
            os.mkdir(directory, 0o700)
            os.symlink(directory, self._known)
            options = ["--to", f"unix:{LINK}", "--session", self._name, "--page-server-port", port]
            words = ["--rounds", "-D", directory, *options]
            said = start(*words, until=READY, place=f"{directory}/ended")
            assert READY in said, said

    def run(self, action: str, words: list[str]) -> int:
        """One round, by the real CRIU; its exit code, or another one if the round does not count."""
        last = action == "dump" and "--leave-running" not in words
        options = ask(f"{self.directory}/imgproxy.sock", op="rounds", last=last)["options"]
        work = f"{self._images}.work"
        os.mkdir(work)
        ours = [*options, "-W", work]
        ended = os.spawnv(os.P_WAIT, CRIU, [CRIU, action, *without(words, *PAGES), *ours])
        for name in set(os.listdir(work)) - {"stats-dump"}:
            os.rename(f"{work}/{name}", f"{self._images}/{name}")
        return ended or (self._committed() if last else self._counts())

    def _counts(self) -> int:
        note = ask(f"{self.directory}/imgproxy.sock", op="rounds")["note"]
        print(note, flush=True)
        return 1 if "dropped" in note else 0

    def _committed(self) -> int:
        with open(f"{self.directory}/ended", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            code, stdout, stderr = json.load(file)
        print(stdout, stderr if code else "", flush=True)
        return int(code)

    def restore(self, words: list[str]) -> int:
        """Become the real CRIU, which restores what the cache has."""
        merged = f"{self._all}/merged"
        if not os.path.exists(merged):
            ask(f"{CACHE}/imgcache.sock", op="extract", session=self._name, directory=merged)
            ask(f"{CACHE}/imgcache.sock", op="drop", session=self._name, force=True)
        os.execv(CRIU, [CRIU, "restore", *without(words, *PAGES), "-D", merged, "-W", self._images])


def main(action: str, *given: str) -> int:
    words = list(given)
    images = value(words, "--images-dir")
    rounds = Rounds(os.path.abspath(images))
    if os.environ.get("ZDTM_PAGES") == "criu":
        return _criu_alone(action, words, images)
    if action == "page-server":
        rounds.listen(value(words, "--port"))
        with open(f"{images}/page-server.log", "w", encoding="utf-8"):
            os.write(int(value(words, "--status-fd")), b"\0")
        return 0
    return rounds.restore(words) if action == "restore" else rounds.run(action, words)


def _criu_alone(action: str, words: list[str], images: str) -> int:
    if action not in ("pre-dump", "dump"):
        os.execv(CRIU, [CRIU, action, *words])
    ended = os.spawnv(os.P_WAIT, CRIU, [CRIU, action, *words])
    if ended == 0:
        os.unlink(f"{images}/stats-dump")
    return ended


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
