"""Every shell session of the documents is run for real, on two nodes with the real CRIU.

In the nodes `/run`, `/var/lib` and `/etc` are their own, and `/srv` is a directory that both see, empty at first.
"""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, Command, Scenario, scenarios
from tests.fake_rounds import planned
from tests.nodes import Node, Nodes, Program, open_nodes
from tests.programs import Programs

pytestmark = pytest.mark.t2

#: What a program in the background writes to stderr when others may go on.
READY = {"imgcache": '"event": "ready"', "imgproxy": '"event": "ready"', "criu-image-streamer": "socket-init"}

SCENARIOS = scenarios()

_ORIGINAL = """#!/bin/sh
verb=$1; shift
export PYTHONPATH='{root}' TMPDIR='{scratch}'
exec '{python}' -m tests.remote_shim "$(echo "$verb" | tr -d -)" "$@" --criu '{real}' --scratch "$(mktemp -d)"
"""


class Session:
    """Runs the commands of a scenario."""

    def __init__(self, source: Node, destination: Node) -> None:
        self._nodes = {"source": source, "destination": destination}
        self._background: list[tuple[str, str, Program]] = []

    async def perform(self, command: Command) -> None:
        """Run one command, and compare what it prints with what is shown."""
        if command.in_background:
            await self._start(command)
        elif command.text == "wait":
            _compare(command, await self._wait(command.node))
        elif command.text == "kill -KILL %1":
            await self._kill(command.node)
        else:
            done = await self._nodes[command.node].run("bash", "-c", f"exec 2>&1; {command.text}")
            assert done.code == 0, f"{command.place}: {command.text}: exit code {done.code}: {done.stdout}"
            _compare(command, done.stdout)

    async def end(self) -> None:
        """All that was left in the background ends as it should."""
        for node in self._nodes:
            await self._wait(node)
        for _, text, program in self._background:
            assert await program.stop() == 0, f"{text}: {program.stderr}"

    async def _start(self, command: Command) -> None:
        words = command.text.removesuffix("&").strip()
        name = next((name for name in READY if re.search(rf"(^|\| ){name}\b", words)), None)
        simple = name in ("imgcache", "imgproxy")  # exec: a signal reaches the program, not a shell
        program = self._nodes[command.node].start("bash", "-c", f"exec {words}" if simple else words)
        self._background.append((command.node, words, program))
        if name is not None:
            await program.wait_stderr(READY[name])

    async def _kill(self, node: str) -> None:
        entry = next(entry for entry in self._background if entry[0] == node)
        self._background.remove(entry)
        await entry[2].kill9()

    async def _wait(self, node: str) -> str:
        output = ""
        for entry in list(self._background):
            where, text, program = entry
            if where == node and not text.startswith("imgcache"):
                done = await program.ended()
                assert done.code == 0, f"{text}: exit code {done.code}: {done.output}"
                output += done.stdout
                self._background.remove(entry)
        return output


def _compare(command: Command, output: str) -> None:
    if command.expected:
        pattern = "".join(_pattern(line) for line in command.expected)
        shown = "\n".join(line.rstrip() for line in output.splitlines()) + "\n"
        assert re.fullmatch(pattern, shown), f"{command.place}: {command.text}: shown otherwise than it is:\n{output}"


def _pattern(line: str) -> str:
    if line.strip() == "...":
        return r"(.*\n)*"
    return ".*".join(re.escape(part) for part in line.rstrip().split("...")) + r"\n"


async def _prepare(node: Node, shared: Path, criu: Path) -> None:
    node.environment["PATH"] = f"{criu.parent}:{node.environment['PATH']}"
    script = (
        "mkdir /run/etc && cp -a /etc/. /run/etc && mount --bind /run/etc /etc"
        f" && mount --bind {shared} /srv && mount -t tmpfs lib /var/lib"
    )
    done = await node.run("sh", "-c", script)
    assert done.code == 0, done.output


async def _make(nodes: Nodes, *, joined: bool) -> tuple[Node, Node]:
    source, destination = await nodes.make(network=joined), await nodes.make(network=joined)
    if joined:
        assert await nodes.join(source, destination) == ("10.77.0.1", "10.77.0.2"), "as the documents have them"
    return source, destination


@pytest.mark.parametrize("scenario", SCENARIOS, ids=[scenario.name for scenario in SCENARIOS])
async def test_session(
    scenario: Scenario, programs: Programs, make_node_dir: Callable[[], Path], criu_latest: Path
) -> None:
    command = make_node_dir() / "criu"  # under the name that the documents use
    if scenario.kind == "original":
        command.write_text(
            _ORIGINAL.format(real=criu_latest, root=ROOT, scratch=make_node_dir(), python=sys.executable)
        )
        command.chmod(0o755)
    elif scenario.kind == "tracking":
        command = planned(command.parent, criu_latest, "good")
    else:
        command.symlink_to(criu_latest)
    async with open_nodes(programs, make_node_dir) as nodes:
        source, destination = await _make(nodes, joined=scenario.kind == "joined")
        shared = make_node_dir()
        for node in (source, destination):
            await _prepare(node, shared, command)
        session = Session(source, destination)
        for step in scenario.commands:
            await session.perform(step)
        await session.end()


def test_there_are_sessions() -> None:
    assert len(SCENARIOS) > 5
    assert all(scenario.commands for scenario in SCENARIOS)
    assert os.geteuid() == 0, "CRIU needs root"
