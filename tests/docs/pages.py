"""The documents as the tests read them: fenced blocks, and the shell sessions that they tell.

A block tagged `console` is run. Its prompt names the node (`source$`, `destination$`), a trailing `&` puts a program
into the background, `wait` waits for those of its node (`kill -KILL %1` kills the first), the lines below a command
are what it prints, `...` standing for anything. A comment `<!-- nodes -->` begins a scenario: two fresh nodes, on which
all blocks up to the next such comment are run in order. `<!-- nodes: joined -->` has a network between them; with
`<!-- nodes: original -->` `criu` has the original's `--remote`, with `<!-- nodes: tracking -->` pre-dumps, by a fake.
Other tags are not run.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_FENCE = re.compile(r"^```(\w*)\s*$")
_NODES = re.compile(r"^<!-- nodes(?:: (joined|original|tracking))? -->$")
_PROMPT = re.compile(r"^(source|destination)\$ (.*)$")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of text."""

    page: Path
    line: int
    tag: str
    lines: tuple[str, ...]


@dataclass
class Command:
    """One command of a session. `expected`: the lines shown below it."""

    place: str
    node: str
    text: str
    expected: list[str] = field(default_factory=list)

    @property
    def in_background(self) -> bool:
        """Whether the session goes on while it runs."""
        return self.text.endswith("&")


@dataclass
class Scenario:
    """What is run on two fresh nodes."""

    name: str
    kind: str  #: "", "joined", "original" or "tracking"
    commands: list[Command] = field(default_factory=list)


def documents() -> list[Path]:
    """README and all pages of docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    return [part for part in _parts(page) if isinstance(part, Block)]


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return "\n".join(part for part in _parts(page) if isinstance(part, str))


def scenarios() -> list[Scenario]:
    """All that is to be run."""
    return [scenario for page in documents() for scenario in _scenarios(page)]


def _parts(page: Path) -> list[Block | str]:
    parts: list[Block | str] = []
    tag, start, inside = "", 0, list[str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        fence = _FENCE.match(line)
        if not start and fence:
            tag, start, inside = fence[1], number + 1, []
        elif start and line == "```":
            parts.append(Block(page, start, tag, tuple(inside)))
            start = 0
        elif start:
            inside.append(line)
        else:
            parts.append(line)
    assert not start, f"{page.name}:{start}: a block that does not end"
    return parts


def _scenarios(page: Path) -> list[Scenario]:
    found: list[Scenario] = []
    for part in _parts(page):
        if isinstance(part, str):
            if marker := _NODES.match(part):
                found.append(Scenario(f"{page.stem}-{len(found) + 1}", marker[1] or ""))
        elif part.tag == "console":
            assert found, f"{page.name}:{part.line}: no <!-- nodes --> before it says where it is run"
            found[-1].commands += _commands(part)
    return found


def _commands(block: Block) -> list[Command]:
    found: list[Command] = []
    for number, line in enumerate(block.lines, block.line):
        prompt = _PROMPT.match(line)
        if found and _open_here_document(found[-1].text):
            found[-1].text += "\n" + line
        elif found and found[-1].text.endswith("\\"):
            found[-1].text = found[-1].text[:-1] + line.strip()
        elif prompt:
            found.append(Command(f"{block.page.name}:{number}", prompt[1], prompt[2]))
        else:
            assert found, f"{block.page.name}:{number}: output of no command"
            found[-1].expected.append(line)
    return found


def _open_here_document(text: str) -> bool:
    """Whether the lines that follow are still a command's input."""
    begun = re.search(r"<<'(\w+)'", text)
    return begun is not None and text.splitlines()[-1] != begun[1]
