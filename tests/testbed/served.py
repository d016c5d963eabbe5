"""A server with an address that moves, and its caller, on a network of nodes (`tests.testbed.lan`).

Who moves the address is the action script of the documents. The caller is outside of the tree, asks all the time, and
connects once.
"""

import json
import sys
from pathlib import Path

from tests.docs.pages import ROOT, blocks
from tests.nodes import Nodes, Program, until
from tests.testbed import caller
from tests.testbed.guest_nodes import PATIENCE
from tests.testbed.lan import MOVES, Lan

SERVICE = 7100
#: What CRIU must be told: the address is gone while it looks at the connection, so it need not lock anything.
OPTIONS = ("--tcp-established", "--network-lock=skip")
#: Answers that make sure that the connection works.
SOME = 50
#: Takes a pid, so that a restore fails.
TAKE = 'echo $(($0 - 1)) >/proc/sys/kernel/ns_last_pid; sleep 1000 </dev/null >/dev/null 2>&1 & [ $! = "$0" ]'


def address_script(folder: Path) -> Path:
    """The action script of the documents, as it stands there."""
    (block,) = (one for one in blocks(ROOT / "docs/isa.md") if one.tag == "sh")
    path = folder / "address-moves"
    path.write_text("\n".join(block.lines) + "\n")
    path.chmod(0o755)
    return path


class Served:
    """Both of them. `pid`: the server's."""

    def __init__(self, pid: int, call: Program) -> None:
        self.pid, self._call = pid, call

    @classmethod
    async def start(cls, lan: Lan, nodes: Nodes, server: Path) -> "Served":
        """The server on the network's node, and its caller; some answers have come."""
        pid = await nodes.start_quiet(lan.node, server, MOVES, SERVICE)
        sockets = lan.node.path(f"/proc/{pid}/net/tcp")
        await until(lambda: f":{SERVICE:04X} " in sockets.read_text(), "it to listen")
        served = cls(pid, lan.caller.start(sys.executable, "-S", caller.__file__, MOVES, SERVICE))
        await served.answered()
        return served

    async def answered(self) -> None:
        """Some more requests are answered, and all were right."""
        before = self._count()
        await self._call.wait_for(lambda: self._count() > before + SOME or None, "to be answered", PATIENCE)

    def _count(self) -> int:
        lines = self._call.stdout.splitlines()
        return int(lines[-1].split()[0]) if lines else 0

    async def end(self) -> None:
        """The caller ends: all answers were right."""
        assert await self._call.stop() == 0, self._call.stderr
        told = json.loads(self._call.stdout.splitlines()[-1])
        print(f"one connection: {told['requests']} requests, {told['longest']} s at most without an answer")
