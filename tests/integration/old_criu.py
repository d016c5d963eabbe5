"""`criu --remote` in the nodes of a test: a real CRIU behind the original's bytes (`tests/remote_shim.py`)."""

import sys
from pathlib import Path

from tests.nodes import Node, Nodes, Program

ROOT = Path(__file__).resolve().parents[2]


class Shim:
    """Starts `criu --remote` in one node, of one variant."""

    def __init__(self, nodes: Nodes, node: Node, criu: Path, variant: str = "pipe") -> None:
        self._nodes, self._node, self._criu, self._variant = nodes, node, criu, variant
        node.environment["PYTHONPATH"] = str(ROOT)

    def start(
        self, verb: str, *options: object, snapshot: str = ".", hook: str = "", scratch: Path | None = None
    ) -> Program:
        """`hook`: the action script's name in the node's directory."""
        words: list[object] = ["--remote", "-D", snapshot, "--criu", self._criu]
        words += ["--scratch", scratch or self._nodes.make_node_dir()]
        words += ["--action-script", self._node.directory / hook] if hook else []
        words += ["--nopipe"] if self._variant == "nopipe" else []
        command = [sys.executable, "-m", "tests.remote_shim", verb, *words, *options]
        return self._node.start("sh", "-c", 'cd "$0" && exec "$@"', self._node.directory, *command)
