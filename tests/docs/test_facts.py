"""Numbers and states that the documents give are those of the code."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from imgwire.errors import LocalProtocolError
from imgwire.frames import FrameType
from imgwire.messages import _NAMES
from imgwire.states import SessionState, advance
from tests.docs.pages import ROOT, documents

pytestmark = pytest.mark.t0

_CONSTANT = re.compile(r"^\| `([a-z_]+(?:\.[a-z_]+)+)\.([A-Z_]+)` \| ([0-9.]+) \|", re.MULTILINE)
CONSTANTS = [(page, *found) for page in documents() for found in _CONSTANT.findall(page.read_text())]
LINK = (ROOT / "docs/link-protocol.md").read_text()


@pytest.mark.parametrize(("page", "module", "name", "value"), CONSTANTS, ids=[found[2] for found in CONSTANTS])
def test_a_constant(page: Path, module: str, name: str, value: str) -> None:
    assert getattr(importlib.import_module(module), name) == float(value), f"{page.name}: {module}.{name}"


def test_states_follow_as_the_table_says() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \| ((?:`\w+`(?:, )?)*) ?\|$", LINK.partition("## States of a session")[2], re.MULTILINE
    )
    told = {state: set(re.findall(r"`(\w+)`", after)) for state, after in rows}
    assert told == {
        state.value: {then.value for then in SessionState if _may_follow(state, then)} for state in SessionState
    }


def _may_follow(now: SessionState, then: SessionState) -> bool:
    try:
        advance(now, then)
    except LocalProtocolError:
        return False
    return True


def test_every_message_is_listed_with_its_fields() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (?:proxy|cache) \| ([\w, ]*) ?\|", LINK, re.MULTILINE)
    told = {name: fields.strip() for name, fields in rows}
    assert told == {name: ", ".join(kind.__dataclass_fields__) for kind, name in _NAMES.items()}


def test_every_frame_type_is_listed() -> None:
    assert ", ".join(f"{kind.value} {kind.name}" for kind in FrameType) in LINK


def test_modules_that_are_named_exist() -> None:
    named = {(page.name, name) for page in documents() for name in _MODULE.findall(page.read_text())}
    missing = [f"{page}: {name}" for page, name in sorted(named) if importlib.util.find_spec(name) is None]
    assert not missing


_MODULE = re.compile(r"`((?:imgwire|imgnode|imgproxy|imgcache|transform|criu_image_streamer)(?:\.[a-z_]+)+)`")


def _texts() -> set[str]:
    """Every text in the programs; of one with values in it, the parts between them."""
    packages = ("imgwire", "imgnode", "imgproxy", "imgcache", "transform", "criu_image_streamer")
    sources = [path.read_text() for package in packages for path in (ROOT / package).rglob("*.py")]
    nodes = (node for source in sources for node in ast.walk(ast.parse(source)))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def test_messages_that_are_explained_exist() -> None:
    """In the first column of a table of messages; those of CRIU are marked as such."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    cells = [line.split(" | ")[0] for line in page.splitlines() if line.startswith("| ") and "CRIU: " not in line]
    parts = {part for cell in cells for code in re.findall(r"`([^`]+)`", cell) for part in code.split("...")}
    texts = _texts()
    assert len(parts) > 40
    assert not {part for part in parts if not any(part in text for text in texts)}
