"""The action script of `criu restore`: holds the restored process until the source has given it up.

`post-restore` runs when everything is restored and no instruction has run; a non-zero exit still undoes it. It tells
the cache and waits for its decision. From then on the source may have committed, so nothing but a decision ends the
wait: if the cache dies we wait for it to come back, and only CRIU's own death makes us give up, because its tasks can
then never run. `pre-resume` says that it runs: from there on it does, even if CRIU dies. Standard library only.
"""

import os
import select
import sys

from imgnode import proc
from imgnode.action_script import Action, from_environment, script, users
from imgnode.control_client import ControlClient, Request
from imgnode.hook_client import CriuWatch, connect
from imgwire.errors import UsageError

SOCKET = "imgcache.sock"
SCRIPT = "imgcache-hook"

#: Milliseconds between two attempts to reach a cache that has died and is being restarted.
RETRY = 200
#: Attempts to tell a cache that the process runs: nothing depends on it, the restored process does not wait.
RUNNING_ATTEMPTS = 50


def script_text(socket: str, users_script: "os.PathLike[str] | None" = None) -> str:
    """The script that the cache writes for `criu restore --action-script`. `users_script`: one of the user's, before
    ours."""
    return script("imgcache.hook", socket, ["pre-stream", "post-restore"], ["pre-resume"], users(users_script))


def main() -> int:
    """Run the script; the exit code is CRIU's answer."""
    try:
        action = from_environment(SOCKET)
        return _ACTIONS.get(action.name, _nothing)(action)
    except UsageError as error:
        print(f"imgcache hook: {error}", file=sys.stderr)
        return 1


def _nothing(_action: Action) -> int:
    return 0


def _begin(action: Action) -> int:
    """pre-stream: this restore runs with the hook, so it may have its images before the commit."""
    client = connect(action.socket)
    if client is None:
        raise UsageError(f"no imgcache listens at {action.socket}: start it with -D of that directory")
    client.ask({"op": "restore-begins", "criu": action.criu})
    answer = client.answer()
    client.close()
    return 0 if answer and answer.get("ok") else 1


def _running(action: Action) -> int:
    """pre-resume: it runs. `age` is how long ago this script was started."""
    poll = select.poll()
    for _ in range(RUNNING_ATTEMPTS):
        client = connect(action.socket)
        if client is not None:
            client.ask({"op": "running", "criu": action.criu, "init": action.init, "age": proc.age()})
            answer = client.answer()
            client.close()
            if answer is not None:
                return 0
        poll.poll(RETRY)
    return 1


class _Wait:
    """post-restore: wait for the decision."""

    def __init__(self, action: Action) -> None:
        self._action = action
        self._tree = proc.tree(action.init)
        self._session: str | None = None
        self._criu = CriuWatch(action.criu)

    def decide(self) -> int:
        while True:
            client = connect(self._action.socket)
            decision = self._ask(client) if client else None
            if decision is not None:
                return decision
            if self._session is None:
                return self._give_up()  # the cache is gone and has promised nothing: the source goes on
            if self._criu.died_within(RETRY):
                return self._give_up()

    def _ask(self, client: ControlClient) -> int | None:
        """The exit code, or None if the cache went away."""
        action = self._action
        try:
            client.ask({"op": "restored", "criu": action.criu, "init": action.init, "session": self._session})
            while (answer := self._criu.answer(client)) is not None:
                if "decision" in answer:
                    return self._obey(answer)
                self._session = answer["session"]
            return self._give_up() if self._criu.died_within(0) else None
        except BrokenPipeError:
            return None
        finally:
            client.close()

    def _obey(self, answer: Request) -> int:
        if answer["decision"] == "run":
            return 0
        print(f"imgcache hook: {answer.get('reason', 'the process runs on at the source')}", file=sys.stderr)
        return self._give_up()

    def _give_up(self) -> int:
        """The restored tasks must not stay. CRIU may be dead, or die before it does this on our exit code."""
        proc.kill_tree(self._tree)
        return 1


def _decide(action: Action) -> int:
    try:
        wait = _Wait(action)
    except ProcessLookupError:
        raise UsageError(f"process {action.init} is gone before it was restored") from None
    return wait.decide()


_ACTIONS = {"pre-stream": _begin, "post-restore": _decide, "pre-resume": _running}


if __name__ == "__main__":
    sys.exit(main())
