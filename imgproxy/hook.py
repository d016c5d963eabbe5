"""The action script of `criu dump`: ends the process here only when it is safe there.

`post-dump` runs when every image is written and the tasks are frozen; a non-zero exit makes CRIU resume them. It asks
the proxy, and on its word kills the frozen tree itself, having written down that it will: CRIU could be killed before
it does, and the tasks would run on beside their copy. We could be killed, too, between two of our signals: so all are
stopped before the first is killed, and what CRIU then lets go stands still. Until it is written down that we kill,
anything that goes wrong means that the process stays here. Standard library only.
"""

import os
import sys

from imgnode import proc
from imgnode.action_script import Action, from_environment, script, users
from imgnode.control_client import ControlClient, Request
from imgnode.hook_client import CriuWatch, connect
from imgnode.journal import Journal
from imgwire.errors import UsageError

SOCKET = "imgproxy.sock"
SCRIPT = "imgproxy-hook"
#: The states of a journal while the tree is stopped to be killed, and while it is killed.
DECIDING, KILLING = "deciding", "killing"
#: The same where memory follows: from the moment that the tree is stopped until it is killed.
STOPPED = "stopped"

#: Seconds for SIGKILL to work on a frozen tree. It takes milliseconds.
KILL_TIMEOUT = 30.0

_LET_GO = "criu has let the tasks go: they run on here"


def script_text(socket: str, begin: str, users_script: "os.PathLike[str] | None" = None) -> str:
    """The script that the proxy writes for `criu dump --action-script`; `begin` is the action that a dump begins with:
    pre-stream, or for a CRIU that does not know it, pre-dump. `users_script`: one of the user's, before ours."""
    first = users(users_script, os.path.dirname(socket))
    return script("imgproxy.hook", socket, [begin, "post-dump"], first=first)


def main() -> int:
    """Run the script; the exit code is CRIU's answer."""
    try:
        action = from_environment(SOCKET)
        return _ACTIONS.get(action.name, _nothing)(action)
    except UsageError as error:
        print(f"imgproxy hook: {error}", file=sys.stderr)
        return 1


def _nothing(_action: Action) -> int:
    return 0


def _begin(action: Action) -> int:
    """pre-stream, pre-dump: this dump runs with the hook, so the proxy may take its images."""
    answer = _ask(action, {"op": "dump-begins", "criu": action.criu})
    return 0 if answer.get("ok") else 1


def _hand_over(action: Action) -> int:
    """post-dump: wait for the word, then end the tree."""
    watch = CriuWatch(action.criu)
    client = _connect(action)
    client.ask({"op": "post-dump", "criu": action.criu, "init": action.init})
    session = client.answer()  # names the journal; comes at once
    if session is None:
        return _refuse("the proxy went away")
    answer = watch.answer(client)
    if answer is None:
        return _refuse("criu died") if watch.died_within(0) else _proxy_is_gone(session)
    if answer["decision"] == "done":
        return 0
    if answer["decision"] == "serve":
        _watch_over(int(answer["proxy"]), Journal(session["journal"], session["session"]))
        return 0
    if answer["decision"] != "kill":
        return _refuse(str(answer.get("reason")))
    return _end_tree(action, Journal(session["journal"], session["session"]), watch)


def _end_tree(action: Action, journal: Journal, watch: CriuWatch) -> int:
    """The point of no return: while CRIU still holds every task, stop them all, write it down and kill."""
    tree = proc.tree(action.init)
    if not _held(tree, action, watch):
        return _refuse(_LET_GO)
    if reason := _not_written(
        journal, DECIDING, tree=[list(task) for task in tree], hook=list(proc.identify(os.getpid()))
    ):
        return _refuse(reason)
    proc.stop_tree(tree)  # no task runs again, whoever dies, unless it is taken back
    if reason := _not_written(journal, KILLING) if _held(tree, action, watch) else _LET_GO:
        _write_aborted(journal, reason)
        proc.continue_tree(tree)
        return _refuse(reason)
    proc.kill_tree(tree)
    proc.wait_doomed(tree, KILL_TIMEOUT)
    if reason := _not_written(journal, "committed"):  # `killing` says the same
        print(f"imgproxy hook: {reason}", file=sys.stderr)
    try:
        _ask(action, {"op": "killed"})
    except UsageError:  # the proxy died meanwhile: the cache must hear it from somebody
        _recover(journal)
    return 0


def _not_written(journal: Journal, state: str, **facts: object) -> str:
    """Write a record; why it could not be written, or ""."""
    try:
        journal.write(state, **facts)
    except OSError as error:
        return str(error)
    return ""


def _held(tree: list[proc.ProcessId], action: Action, watch: CriuWatch) -> bool:
    """Whether CRIU lives and traces every task, so that none can run. A zombie cannot, and is not traced."""
    try:
        return not watch.died_within(0) and all(
            proc.tracer(task.pid) == action.criu or not proc.is_alive(task) for task in tree
        )
    except ProcessLookupError:
        return False


def _proxy_is_gone(session: Request) -> int:
    """It has given no word, so nothing was decided: the process stays here, and the cache is told. Unless it had begun
    to stop the tree: then it is for the cache to say."""
    journal = Journal(session["journal"], session["session"])
    if journal.state == STOPPED:
        _recover(journal)
        return 0
    _write_aborted(journal, "the proxy died before the hand-over")
    _recover(journal)
    return _refuse("the proxy died")


def _write_aborted(journal: Journal, reason: str) -> None:
    """So that nobody need look at the journal's other records to know; they say the same."""
    if failure := _not_written(journal, "aborted", reason=reason):
        print(f"imgproxy hook: {failure}", file=sys.stderr)


def _watch_over(proxy: int, journal: Journal) -> None:
    """Post-copy: CRIU goes on, to serve pages. If the proxy dies before it is done, start a recovery in its place."""
    watch = CriuWatch(proxy)
    if os.fork() == 0:
        os.setsid()
        watch.keep_alone()
        watch.died_within(-1)
        if os.path.exists(journal.path):
            _recover(journal)
        os._exit(0)


def _recover(journal: Journal) -> None:
    """Start `imgproxy recover` for this session, on its own: it needs a moment, and CRIU waits for us."""
    if os.fork() == 0:
        os.setsid()
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in range(3):
            os.dup2(nowhere, fd)
        command = [sys.executable, "-m", "imgproxy", "recover", "--journal", journal.directory, journal.session]
        os.execv(sys.executable, command)


def _ask(action: Action, request: Request) -> Request:
    answer = _connect(action).only_answer(request)
    if answer is None:
        raise UsageError("the imgproxy went away")
    return answer


def _connect(action: Action) -> ControlClient:
    client = connect(action.socket)
    if client is None:
        raise UsageError(f"no imgproxy listens at {action.socket}: start it with -D of that directory")
    return client


def _refuse(reason: str) -> int:
    print(f"imgproxy hook: {reason}", file=sys.stderr)
    return 1


_ACTIONS = {"pre-stream": _begin, "pre-dump": _begin, "post-dump": _hand_over}


if __name__ == "__main__":
    sys.exit(main())
